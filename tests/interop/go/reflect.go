package main

import (
	"context"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// reflect lists what the socket serves, and builds each service's description from the files that it tells.
func reflect(ctx context.Context) {
	target := strings.Replace(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://", "unix:", 1)
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	stream, err := v1.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	check(err)
	ask := func(question *v1.ServerReflectionRequest) *v1.ServerReflectionResponse {
		check(stream.Send(question))
		answer, err := stream.Recv()
		check(err)
		return answer
	}
	found := facts{}
	list := ask(&v1.ServerReflectionRequest{MessageRequest: &v1.ServerReflectionRequest_ListServices{}})
	for _, service := range list.GetListServicesResponse().GetService() {
		wanted := &v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.Name}
		answer := ask(&v1.ServerReflectionRequest{MessageRequest: wanted})
		set := &descriptorpb.FileDescriptorSet{}
		for _, raw := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := &descriptorpb.FileDescriptorProto{}
			check(proto.Unmarshal(raw, file))
			set.File = append(set.File, file)
		}
		files, err := protodesc.NewFiles(set)
		check(err)
		described, err := files.FindDescriptorByName(protoreflect.FullName(service.Name))
		check(err)
		found[service.Name] = described.(protoreflect.ServiceDescriptor).Methods().Len()
	}
	check(stream.CloseSend())
	say("served", facts{"methods": found})
}
