package main

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

func toldStatus(err error) facts {
	found := status.Convert(err)
	told := facts{"code": found.Code().String(), "text": found.Message(), "reason": ""}
	for _, detail := range found.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			told["reason"] = info.Reason
		}
	}
	return told
}

// actAsBroker asks the broker endpoint at target, which has to be the agent, for the identities of a process, and
// follows them until the stream ends.
func actAsBroker(ctx context.Context, target string, agent spiffeid.ID, pid int) {
	source, err := workloadapi.NewX509Source(ctx)
	check(err)
	defer source.Close()
	tls := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(agent))
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	check(err)
	defer connection.Close()
	client := broker.NewAPIClient(connection)
	packed, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(pid)})
	check(err)
	reference := &broker.WorkloadReference{Reference: packed}
	_, err = client.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"db"}})
	say("without the header", toldStatus(err))
	ctx = metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
	stream, err := client.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: reference})
	check(err)
	first, err := stream.Recv()
	if err != nil {
		say("refused", toldStatus(err))
		return
	}
	svids := []string{}
	for _, svid := range first.Svids {
		svids = append(svids, svid.SpiffeId)
	}
	answer, err := client.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"db"}})
	check(err)
	bundles, err := client.SubscribeToX509Bundles(ctx, &broker.SubscribeToX509BundlesRequest{Reference: reference})
	check(err)
	roots, err := bundles.Recv()
	check(err)
	names := []string{}
	for name := range roots.Bundles {
		names = append(names, name)
	}
	say("brokered", facts{"svids": svids, "token": answer.Svids[0].SpiffeId, "bundles": names})
	for err == nil {
		_, err = stream.Recv()
	}
	say("ended", toldStatus(err))
}
