package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// verifyByIssuer knows nothing but the issuer, the audience and the authority of the issuer's web certificate. Each line
// of standard input is a token.
func verifyByIssuer(ctx context.Context, issuer, audience, caFile string) {
	pem, err := os.ReadFile(caFile)
	check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		check(fmt.Errorf("%s holds no certificate", caFile))
	}
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		say("refused", facts{"text": err.Error()})
		return
	}
	var told struct {
		JWKS       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	check(provider.Claims(&told))
	say("discovered", facts{"algorithms": told.Algorithms, "keys": keysAt(client, told.JWKS)})
	verifier := provider.Verifier(&oidc.Config{ClientID: audience})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		token, err := verifier.Verify(ctx, lines.Text())
		if err != nil {
			say("refused", facts{"text": err.Error()})
			continue
		}
		say("verified", facts{"iss": token.Issuer, "sub": token.Subject, "aud": token.Audience})
	}
}

// keysAt is what go-jose reads at a URL.
func keysAt(client *http.Client, url string) []facts {
	answer, err := client.Get(url)
	check(err)
	defer answer.Body.Close()
	var set jose.JSONWebKeySet
	check(json.NewDecoder(answer.Body).Decode(&set))
	found := []facts{}
	for _, key := range set.Keys {
		found = append(found, facts{
			"kid": key.KeyID, "alg": key.Algorithm, "use": key.Use, "valid": key.Valid(), "public": key.IsPublic(),
		})
	}
	return found
}
