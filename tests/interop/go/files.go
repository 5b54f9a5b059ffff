package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider"
	_ "google.golang.org/grpc/credentials/tls/certprovider/pemfile"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// present is what gRPC's file watcher has read last: the identity, and the bundles by trust domain.
func present(ctx context.Context, provider certprovider.Provider) *tls.Config {
	material, err := provider.KeyMaterial(ctx)
	check(err)
	bundles := spiffebundle.NewSet()
	for _, bundle := range material.SPIFFEBundleMap {
		bundles.Add(bundle)
	}
	return &tls.Config{
		Certificates:       material.Certs,
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // verified below, for the SPIFFE ID and not for a host name
		NextProtos:         []string{"h2"},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			_, _, err := x509svid.ParseAndVerify(raw, bundles)
			return err
		},
	}
}

// watchFiles serves and calls gRPC with the files that a file_watcher configuration names, a new connection each time,
// until the server has shown that many certificates.
func watchFiles(ctx context.Context, configuration string, count int) {
	text, err := os.ReadFile(configuration)
	check(err)
	provider, err := certprovider.GetProvider("file_watcher", json.RawMessage(text), certprovider.BuildOptions{
		WantRoot: true, WantIdentity: true,
	})
	check(err)
	defer provider.Close()
	served := &tls.Config{
		NextProtos:         []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return present(ctx, provider), nil },
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(served)))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	defer server.Stop()
	calls, seen := 0, map[string]bool{}
	for len(seen) < count {
		connection, err := grpc.NewClient(
			listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(present(ctx, provider))))
		check(err)
		var other peer.Peer
		_, err = grpc_health_v1.NewHealthClient(connection).Check(
			ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&other))
		check(err)
		calls++
		leaf := other.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0]
		if serial := leaf.SerialNumber.Text(16); !seen[serial] {
			seen[serial] = true
			say("served", facts{"spiffe_id": leaf.URIs[0].String(), "serial": serial, "calls": calls})
		}
		check(connection.Close())
		time.Sleep(10 * time.Millisecond)
	}
}
