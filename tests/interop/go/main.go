// A workload that uses go-spiffe: one JSON line per event on standard output.
//
//	fetch             the SVIDs and the bundles, once
//	jwt AUDIENCE      a JWT-SVID, verified here with the JWT bundles and validated by the agent
//	watch COUNT       every SVID on the stream until COUNT rotations have been seen
//	reflect           what the socket serves, by server reflection
//	broker TARGET AGENT PID  the identities of a process, from the broker endpoint of the agent with that ID
//	files CONFIG COUNT  gRPC with the files of a file_watcher, until COUNT certificates have been served
//	oidc ISSUER AUDIENCE CA  verify each token on standard input, from the issuer's discovery document alone
//	serve PEER        greet everyone who proves to be PEER, until killed
//	dial PORT PEER    greet the server at PORT, which has to be PEER
//
// The Workload API is found through SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

type facts map[string]any

func say(event string, found facts) {
	if found == nil {
		found = facts{}
	}
	found["event"] = event
	line, err := json.Marshal(found)
	check(err)
	fmt.Println(string(line))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func told(svid *x509svid.SVID) facts {
	leaf := svid.Certificates[0]
	return facts{
		"spiffe_id": svid.ID.String(),
		"serial":    leaf.SerialNumber.Text(16),
		"chain":     len(svid.Certificates),
		"not_after": leaf.NotAfter.Unix(),
	}
}

func fetch(ctx context.Context) {
	held, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		say("refused", facts{"code": status.Code(err).String(), "text": err.Error()})
		return
	}
	bundles, err := workloadapi.FetchX509Bundles(ctx)
	check(err)
	svids := []facts{}
	for _, svid := range held.SVIDs {
		svids = append(svids, told(svid))
	}
	roots := facts{}
	for _, bundle := range bundles.Bundles() {
		roots[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	_, _, err = x509svid.Verify(held.DefaultSVID().Certificates, bundles)
	check(err)
	say("fetched", facts{"svids": svids, "default": held.DefaultSVID().ID.String(), "bundles": roots})
}

func fetchJWT(ctx context.Context, audience string) {
	source, err := workloadapi.NewJWTSource(ctx)
	check(err)
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		say("refused", facts{"code": status.Code(err).String(), "text": err.Error()})
		return
	}
	verified, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience})
	check(err)
	validated, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), audience)
	check(err)
	_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "somebody else")
	say("token", facts{
		"spiffe_id": verified.ID.String(),
		"audience":  verified.Audience,
		"validated": validated.ID.String(),
		"other":     status.Code(err).String(),
	})
}

type watcher struct {
	found chan *x509svid.SVID
}

func (w watcher) OnX509ContextUpdate(held *workloadapi.X509Context) {
	svid := held.DefaultSVID()
	_, _, err := x509svid.Verify(svid.Certificates, held.Bundles)
	check(err)
	w.found <- svid
}

func (w watcher) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, "watch:", err)
}

func watch(ctx context.Context, count int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := watcher{found: make(chan *x509svid.SVID, 16)}
	ended := make(chan error, 1)
	go func() { ended <- workloadapi.WatchX509Context(ctx, w) }()
	last := ""
	for seen := 0; seen <= count; {
		select {
		case svid := <-w.found:
			if serial := svid.Certificates[0].SerialNumber.Text(16); serial != last {
				say("svid", told(svid))
				last = serial
				seen++
			}
		case err := <-ended:
			check(fmt.Errorf("the stream ended: %w", err))
		}
	}
}

func leafOf(state tls.ConnectionState) *x509.Certificate {
	return state.PeerCertificates[0]
}

func serve(ctx context.Context, peer spiffeid.ID) {
	source, err := workloadapi.NewX509Source(ctx)
	check(err)
	defer source.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(peer)))
	check(err)
	own, err := source.GetX509SVID()
	check(err)
	say("listening", facts{"port": listener.Addr().(*net.TCPAddr).Port, "spiffe_id": own.ID.String()})
	for {
		plain, err := listener.Accept()
		check(err)
		greet(plain.(*tls.Conn), source)
	}
}

func greet(connection *tls.Conn, source *workloadapi.X509Source) {
	defer connection.Close()
	check(connection.SetDeadline(time.Now().Add(10 * time.Second)))
	if err := connection.Handshake(); err != nil {
		say("refused", facts{"text": err.Error()})
		return
	}
	peer, err := x509svid.IDFromCert(leafOf(connection.ConnectionState()))
	check(err)
	hello, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		say("refused", facts{"text": err.Error()})
		return
	}
	own, err := source.GetX509SVID()
	check(err)
	found := facts{"peer": peer.String(), "hello": strings.TrimSpace(hello)}
	found["serial"] = own.Certificates[0].SerialNumber.Text(16)
	say("greeted", found)
	fmt.Fprintf(connection, "you are %s\n", peer)
}

func dial(ctx context.Context, port int, peer spiffeid.ID) {
	source, err := workloadapi.NewX509Source(ctx)
	check(err)
	defer source.Close()
	dialer := tls.Dialer{Config: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(peer))}
	plain, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		say("refused", facts{"text": err.Error()})
		return
	}
	connection := plain.(*tls.Conn)
	defer connection.Close()
	check(connection.SetDeadline(time.Now().Add(10 * time.Second)))
	fmt.Fprintln(connection, "hello from go-spiffe")
	answer, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		say("refused", facts{"text": err.Error()})
		return
	}
	found := facts{"answer": strings.TrimSpace(answer)}
	found["tls"] = tls.VersionName(connection.ConnectionState().Version)
	say("greeted", found)
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	number := func(text string) int {
		found, err := strconv.Atoi(text)
		check(err)
		return found
	}
	words := os.Args[1:]
	switch words[0] {
	case "fetch":
		fetch(ctx)
	case "jwt":
		fetchJWT(ctx, words[1])
	case "reflect":
		reflect(ctx)
	case "broker":
		actAsBroker(ctx, words[1], spiffeid.RequireFromString(words[2]), number(words[3]))
	case "files":
		watchFiles(ctx, words[1], number(words[2]))
	case "oidc":
		verifyByIssuer(ctx, words[1], words[2], words[3])
	case "watch":
		watch(ctx, number(words[1]))
	case "serve":
		serve(ctx, spiffeid.RequireFromString(words[1]))
	case "dial":
		dial(ctx, number(words[1]), spiffeid.RequireFromString(words[2]))
	default:
		check(fmt.Errorf("unknown mode %q", words[0]))
	}
}
