"""The contract of the wire, written down by hand from its sources: messages, enums and methods (spire_wire sections 2 to 9)."""

FILTER_AGENTS = (
    "by_attestation_type=1:string by_selector_match=2:SelectorMatch by_banned=3:BoolValue "
    "by_can_reattest=4:BoolValue by_expires_before=5:string"
)
FILTER_ENTRIES = (
    "by_spiffe_id=1:SPIFFEID by_parent_id=2:SPIFFEID by_selectors=3:SelectorMatch "
    "by_federates_with=4:FederatesWithMatch by_hint=5:StringValue by_downstream=6:BoolValue"
)
ENTRY_MASK = (
    "spiffe_id=2 parent_id=3 selectors=4 x509_svid_ttl=5 federates_with=6 admin=7 downstream=8 expires_at=9 "
    "dns_names=10 revision_number=11 store_svid=12 jwt_svid_ttl=13 hint=14 created_at=15 additional_attributes=16"
)
KEY = "public_key=1:bytes key_id=2:string expires_at=3:int64 tainted=4:bool"
TOKEN_SVID = "token=1:string id=2:SPIFFEID expires_at=3:int64 issued_at=4:int64 hint=5:string"
CERT = "id=1:SPIFFEID expires_at=2:int64 subject=3:string"
BUNDLE_RESULT = "status=1:Status bundle=2:Bundle"
RELATION_RESULT = "status=1:Status federation_relationship=2:FederationRelationship"
TD_RESULT = "status=1:Status trust_domain=2:string"
MATCH = "MATCH_EXACT=0 MATCH_SUBSET=1 MATCH_SUPERSET=2 MATCH_ANY=3"


def bools(fields):
    return " ".join(f"{field}:bool" for field in fields.split())


TYPES = {
    "Agent": "id=1:SPIFFEID attestation_type=2:string x509svid_serial_number=3:string x509svid_expires_at=4:int64 "
    "selectors=5:[Selector] banned=6:bool can_reattest=7:bool agent_version=8:string",
    "AgentMask": bools(
        "attestation_type=2 x509svid_serial_number=3 x509svid_expires_at=4 selectors=5 banned=6 can_reattest=7 "
        "agent_version=8"
    ),
    "AttestationData": "type=1:string payload=2:bytes",
    "Bundle": "trust_domain=1:string x509_authorities=2:[X509Certificate] jwt_authorities=3:[JWTKey] "
    "refresh_hint=4:int64 sequence_number=5:uint64 wit_authorities=6:[WITKey]",
    "X509Certificate": "asn1=1:bytes tainted=2:bool",
    "JWTKey": KEY,
    "WITKey": KEY,
    "BundleMask": bools("x509_authorities=2 jwt_authorities=3 refresh_hint=4 sequence_number=5 wit_authorities=6"),
    "Entry": "id=1:string spiffe_id=2:SPIFFEID parent_id=3:SPIFFEID selectors=4:[Selector] x509_svid_ttl=5:int32 "
    "federates_with=6:[string] admin=7:bool downstream=8:bool expires_at=9:int64 dns_names=10:[string] "
    "revision_number=11:int64 store_svid=12:bool jwt_svid_ttl=13:int32 hint=14:string created_at=15:int64 "
    "additional_attributes=16:AdditionalAttributes?",
    "Entry.AdditionalAttributes": "disable_x509_svid_prefetch=1:bool jwt_svid_include_jti=2:bool",
    "EntryMask": bools(ENTRY_MASK),
    "FederatesWithMatch": "trust_domains=1:[string] match=2:MatchBehavior",
    "FederationRelationship": "trust_domain=1:string bundle_endpoint_url=2:string "
    "https_web=3:HTTPSWebProfile<bundle_endpoint_profile> "
    "https_spiffe=4:HTTPSSPIFFEProfile<bundle_endpoint_profile> trust_domain_bundle=5:Bundle",
    "HTTPSSPIFFEProfile": "endpoint_spiffe_id=1:string",
    "FederationRelationshipMask": bools("bundle_endpoint_url=1 bundle_endpoint_profile=2 trust_domain_bundle=3"),
    "HTTPSWebProfile": "",
    "JoinToken": "value=1:string expires_at=2:int64",
    "JWTSVID": TOKEN_SVID,
    "Logger": "current_level=1:LogLevel launch_level=2:LogLevel",
    "Selector": "type=1:string value=2:string",
    "SelectorMatch": "selectors=1:[Selector] match=2:MatchBehavior",
    "SPIFFEID": "trust_domain=1:string path=2:string",
    "Status": "code=1:int32 message=2:string",
    "PermissionDeniedDetails": "reason=1:Reason",
    "WITSVID": TOKEN_SVID,
    "X509SVID": "cert_chain=1:[bytes] id=2:SPIFFEID expires_at=3:int64 hint=4:string",
}
AGENT = {
    "CountAgentsRequest": "filter=1:Filter",
    "CountAgentsRequest.Filter": FILTER_AGENTS,
    "CountAgentsResponse": "count=1:int32",
    "ListAgentsRequest": "filter=1:Filter output_mask=2:AgentMask page_size=3:int32 page_token=4:string",
    "ListAgentsRequest.Filter": FILTER_AGENTS,
    "ListAgentsResponse": "agents=1:[Agent] next_page_token=2:string",
    "GetAgentRequest": "id=1:SPIFFEID output_mask=2:AgentMask",
    "DeleteAgentRequest": "id=1:SPIFFEID",
    "BanAgentRequest": "id=1:SPIFFEID",
    "AttestAgentRequest": "params=1:Params<step> challenge_response=2:bytes<step>",
    "AttestAgentRequest.Params": "data=1:AttestationData params=2:AgentX509SVIDParams",
    "AttestAgentResponse": "result=1:Result<step> challenge=2:bytes<step>",
    "AttestAgentResponse.Result": "svid=1:X509SVID reattestable=2:bool",
    "RenewAgentRequest": "params=1:AgentX509SVIDParams",
    "RenewAgentResponse": "svid=1:X509SVID",
    "CreateJoinTokenRequest": "ttl=1:int32 token=2:string agent_id=3:SPIFFEID",
    "PostStatusRequest": "current_bundle_serial=1:uint64 agent_version=2:string",
    "PostStatusResponse": "",
    "AgentX509SVIDParams": "csr=1:bytes",
}
BUNDLE = {
    "CountBundlesRequest": "",
    "CountBundlesResponse": "count=1:int32",
    "GetBundleRequest": "output_mask=1:BundleMask",
    "AppendBundleRequest": "x509_authorities=1:[X509Certificate] jwt_authorities=2:[JWTKey] output_mask=3:BundleMask "
    "wit_authorities=4:[WITKey]",
    "PublishJWTAuthorityRequest": "jwt_authority=1:JWTKey",
    "PublishJWTAuthorityResponse": "jwt_authorities=1:[JWTKey]",
    "PublishWITAuthorityRequest": "wit_authority=1:WITKey",
    "PublishWITAuthorityResponse": "wit_authorities=1:[WITKey]",
    "ListFederatedBundlesRequest": "output_mask=1:BundleMask page_size=2:int32 page_token=3:string",
    "ListFederatedBundlesResponse": "bundles=1:[Bundle] next_page_token=2:string",
    "GetFederatedBundleRequest": "trust_domain=1:string output_mask=2:BundleMask",
    "BatchCreateFederatedBundleRequest": "bundle=1:[Bundle] output_mask=2:BundleMask",
    "BatchCreateFederatedBundleResponse": "results=1:[Result]",
    "BatchCreateFederatedBundleResponse.Result": BUNDLE_RESULT,
    "BatchUpdateFederatedBundleRequest": "bundle=1:[Bundle] input_mask=2:BundleMask output_mask=3:BundleMask",
    "BatchUpdateFederatedBundleResponse": "results=1:[Result]",
    "BatchUpdateFederatedBundleResponse.Result": BUNDLE_RESULT,
    "BatchSetFederatedBundleRequest": "bundle=1:[Bundle] output_mask=2:BundleMask",
    "BatchSetFederatedBundleResponse": "results=1:[Result]",
    "BatchSetFederatedBundleResponse.Result": BUNDLE_RESULT,
    "BatchDeleteFederatedBundleRequest": "trust_domains=1:[string] mode=2:Mode",
    "BatchDeleteFederatedBundleResponse": "results=1:[Result]",
    "BatchDeleteFederatedBundleResponse.Result": TD_RESULT,
}
ENTRY = {
    "CountEntriesRequest": "filter=1:Filter",
    "CountEntriesRequest.Filter": FILTER_ENTRIES,
    "CountEntriesResponse": "count=1:int32",
    "ListEntriesRequest": "filter=1:Filter output_mask=2:EntryMask page_size=3:int32 page_token=4:string",
    "ListEntriesRequest.Filter": FILTER_ENTRIES,
    "ListEntriesResponse": "entries=1:[Entry] next_page_token=2:string",
    "GetEntryRequest": "id=1:string output_mask=2:EntryMask",
    "BatchCreateEntryRequest": "entries=1:[Entry] output_mask=2:EntryMask",
    "BatchCreateEntryResponse": "results=1:[Result]",
    "BatchCreateEntryResponse.Result": "status=1:Status entry=2:Entry",
    "BatchUpdateEntryRequest": "entries=1:[Entry] input_mask=2:EntryMask output_mask=3:EntryMask",
    "BatchUpdateEntryResponse": "results=1:[Result]",
    "BatchUpdateEntryResponse.Result": "status=1:Status entry=2:Entry",
    "BatchDeleteEntryRequest": "ids=1:[string]",
    "BatchDeleteEntryResponse": "results=1:[Result]",
    "BatchDeleteEntryResponse.Result": "status=1:Status id=2:string",
    "GetAuthorizedEntriesRequest": "output_mask=1:EntryMask",
    "GetAuthorizedEntriesResponse": "entries=1:[Entry]",
    "SyncAuthorizedEntriesRequest": "output_mask=1:EntryMask ids=2:[string]",
    "SyncAuthorizedEntriesResponse": "entry_revisions=1:[EntryRevision] entries=2:[Entry] more=3:bool",
    "EntryRevision": "id=1:string revision_number=2:int64 created_at=3:int64",
}
SVID = {
    "MintX509SVIDRequest": "csr=1:bytes ttl=2:int32",
    "MintX509SVIDResponse": "svid=1:X509SVID",
    "MintJWTSVIDRequest": "id=1:SPIFFEID audience=2:[string] ttl=3:int32",
    "MintJWTSVIDResponse": "svid=1:JWTSVID",
    "MintWITSVIDRequest": "id=1:SPIFFEID public_key=2:bytes ttl=3:int32 signing_algorithm=4:string",
    "MintWITSVIDResponse": "svid=1:WITSVID",
    "BatchNewX509SVIDRequest": "params=1:[NewX509SVIDParams]",
    "BatchNewX509SVIDResponse": "results=1:[Result]",
    "BatchNewX509SVIDResponse.Result": "status=1:Status svid=2:X509SVID",
    "NewJWTSVIDRequest": "entry_id=1:string audience=2:[string]",
    "NewJWTSVIDResponse": "svid=1:JWTSVID",
    "BatchNewWITSVIDRequest": "params=1:[NewWITSVIDParams]",
    "BatchNewWITSVIDResponse": "results=1:[Result]",
    "BatchNewWITSVIDResponse.Result": "status=1:Status svid=2:WITSVID",
    "NewDownstreamX509CARequest": "csr=1:bytes preferred_ttl=2:int32",
    "NewDownstreamX509CAResponse": "ca_cert_chain=1:[bytes] x509_authorities=2:[bytes]",
    "NewX509SVIDParams": "entry_id=1:string csr=2:bytes",
    "NewWITSVIDParams": "entry_id=1:string public_key=2:bytes signing_algorithm=3:string",
}
RELATIONS = "federation_relationships=1:[FederationRelationship]"
TRUST_DOMAIN = {
    "ListFederationRelationshipsRequest": "output_mask=1:FederationRelationshipMask page_size=2:int32 "
    "page_token=3:string",
    "ListFederationRelationshipsResponse": f"{RELATIONS} next_page_token=2:string",
    "GetFederationRelationshipRequest": "trust_domain=1:string output_mask=2:FederationRelationshipMask",
    "BatchCreateFederationRelationshipRequest": f"{RELATIONS} output_mask=2:FederationRelationshipMask",
    "BatchCreateFederationRelationshipResponse": "results=1:[Result]",
    "BatchCreateFederationRelationshipResponse.Result": RELATION_RESULT,
    "BatchUpdateFederationRelationshipRequest": f"{RELATIONS} input_mask=2:FederationRelationshipMask "
    "output_mask=3:FederationRelationshipMask",
    "BatchUpdateFederationRelationshipResponse": "results=1:[Result]",
    "BatchUpdateFederationRelationshipResponse.Result": RELATION_RESULT,
    "BatchDeleteFederationRelationshipRequest": "trust_domains=1:[string]",
    "BatchDeleteFederationRelationshipResponse": "results=1:[Result]",
    "BatchDeleteFederationRelationshipResponse.Result": TD_RESULT,
    "RefreshBundleRequest": "trust_domain=1:string",
}
LOCAL_AUTHORITY = {
    "AuthorityState": "authority_id=1:string expires_at=2:int64 upstream_authority_subject_key_id=3:string"
}
AUTHORITY_STATES = "active=1:AuthorityState prepared=2:AuthorityState old=3:AuthorityState"
for kind in ("JWT", "X509", "WIT"):
    LOCAL_AUTHORITY[f"Get{kind}AuthorityStateRequest"] = ""
    LOCAL_AUTHORITY[f"Get{kind}AuthorityStateResponse"] = AUTHORITY_STATES
    LOCAL_AUTHORITY[f"Prepare{kind}AuthorityRequest"] = ""
    LOCAL_AUTHORITY[f"Prepare{kind}AuthorityResponse"] = "prepared_authority=1:AuthorityState"
    for verb, outcome in (("Activate", "activated"), ("Taint", "tainted"), ("Revoke", "revoked")):
        LOCAL_AUTHORITY[f"{verb}{kind}AuthorityRequest"] = "authority_id=1:string"
        LOCAL_AUTHORITY[f"{verb}{kind}AuthorityResponse"] = f"{outcome}_authority=1:AuthorityState"
for verb in ("Taint", "Revoke"):
    LOCAL_AUTHORITY[f"{verb}X509UpstreamAuthorityRequest"] = "subject_key_id=1:string"
    LOCAL_AUTHORITY[f"{verb}X509UpstreamAuthorityResponse"] = "upstream_authority_subject_key_id=1:string"
LOGGER = {"GetLoggerRequest": "", "SetLogLevelRequest": "new_level=1:LogLevel", "ResetLogLevelRequest": ""}
WORKLOAD = {
    "X509SVIDRequest": "",
    "X509SVIDResponse": "svids=1:[X509SVID] crl=2:[bytes] federated_bundles=3:map<string,bytes>",
    "X509SVID": "spiffe_id=1:string x509_svid=2:bytes x509_svid_key=3:bytes bundle=4:bytes hint=5:string",
    "X509BundlesRequest": "",
    "X509BundlesResponse": "crl=1:[bytes] bundles=2:map<string,bytes>",
    "JWTSVIDRequest": "audience=1:[string] spiffe_id=2:string",
    "JWTSVIDResponse": "svids=1:[JWTSVID]",
    "JWTSVID": "spiffe_id=1:string svid=2:string hint=3:string",
    "JWTBundlesRequest": "",
    "JWTBundlesResponse": "bundles=1:map<string,bytes>",
    "ValidateJWTSVIDRequest": "audience=1:string svid=2:string",
    "ValidateJWTSVIDResponse": "spiffe_id=1:string claims=2:Struct",
    "WITSVIDRequest": "spiffe_id=1:string",
    "WITSVIDResponse": "svids=1:[WITSVID]",
    "WITSVID": "spiffe_id=1:string wit_svid=2:string wit_svid_key=3:string hint=4:string",
    "WITBundlesRequest": "",
    "WITBundlesResponse": "bundles=1:map<string,string>",
}
DELEGATED = {
    "X509SVIDWithKey": "x509_svid=1:X509SVID x509_svid_key=2:bytes",
    "SubscribeToX509SVIDsRequest": "selectors=1:[Selector] pid=2:int32",
    "SubscribeToX509SVIDsResponse": "x509_svids=1:[X509SVIDWithKey] federates_with=2:[string]",
    "SubscribeToX509BundlesRequest": "",
    "SubscribeToX509BundlesResponse": "ca_certificates=1:map<string,bytes>",
    "FetchJWTSVIDsRequest": "audience=1:[string] selectors=2:[Selector] pid=3:int32",
    "FetchJWTSVIDsResponse": "svids=1:[JWTSVID]",
    "SubscribeToJWTBundlesRequest": "",
    "SubscribeToJWTBundlesResponse": "bundles=1:map<string,bytes>",
}
DISCOVERY = {
    "SemanticVersion": "major_number=1:uint32 minor_number=2:uint32 patch=3:uint32",
    "BuildVersion": "version=1:SemanticVersion",
    "Node": "id=1:string cluster=2:string metadata=3:Struct user_agent_build_version=8:BuildVersion",
    "ErrorDetail": "code=1:int32 message=2:string",
    "DiscoveryRequest": "version_info=1:string node=2:Node resource_names=3:[string] type_url=4:string "
    "response_nonce=5:string error_detail=6:ErrorDetail",
    "DiscoveryResponse": "version_info=1:string resources=2:[Any] type_url=4:string nonce=5:string",
    "DeltaDiscoveryRequest": "node=1:Node type_url=2:string resource_names_subscribe=3:[string] "
    "resource_names_unsubscribe=4:[string] initial_resource_versions=5:map<string,string> response_nonce=6:string "
    "error_detail=7:ErrorDetail",
    "DeltaDiscoveryResponse": "system_version_info=1:string resources=2:[Resource] type_url=4:string nonce=5:string "
    "removed_resources=6:[string]",
    "Resource": "version=1:string resource=2:Any name=3:string",
}
"""Envoy's own names of packages differ for messages; only numbers and types are on the wire (spire_wire section 6.2)."""
SECRET = {
    "DataSource": "inline_bytes=2:bytes",
    "Secret": "name=1:string tls_certificate=2:TlsCertificate validation_context=4:CertificateValidationContext",
    "TlsCertificate": "certificate_chain=1:DataSource private_key=2:DataSource",
    "TypedExtensionConfig": "name=1:string typed_config=2:Any",
    "CertificateValidationContext": "trusted_ca=1:DataSource custom_validator_config=12:TypedExtensionConfig",
    "SPIFFECertValidatorConfig": "trust_domains=1:[TrustDomain]",
    "SPIFFECertValidatorConfig.TrustDomain": "name=1:string trust_bundle=2:DataSource",
}
ORDERS = {  # ours: architecture A15
    "Order": "order_id=1:string kind=2:Kind verb=3:Verb authority_id=4:string actor=5:string created_at=6:int64 "
    "reports=7:[Report]",
    "Report": "server_id=1:string status=2:Status detail=3:string finished_at=4:int64 this_server=5:bool",
    "Authority": "server_id=1:string kind=2:Kind authority_id=3:string status=4:string tainted=5:bool "
    "expires_at=6:int64 this_server=7:bool",
    "PlaceOrderRequest": "kind=1:Kind verb=2:Verb",
    "PlaceOrderResponse": "order=1:Order",
    "GetOrderRequest": "order_id=1:string",
    "GetOrderResponse": "order=1:Order",
    "ListOrdersRequest": "",
    "ListOrdersResponse": "orders=1:[Order]",
    "ListAuthoritiesRequest": "",
    "ListAuthoritiesResponse": "authorities=1:[Authority]",
    "GiveUpServerRequest": "server_id=1:string",
    "GiveUpServerResponse": "retired=1:[Authority]",
}
_REFERENCE = "reference=1:WorkloadReference"
BROKER = {
    "WorkloadReference": "reference=1:Any",
    "WorkloadPIDReference": "pid=1:int32",
    "KubernetesObjectType": "plural=1:string group=2:string",
    "KubernetesObjectKey": "namespace=1:string name=2:string",
    "KubernetesObjectReference": "type=1:KubernetesObjectType key=2:KubernetesObjectKey uid=3:string",
    "SubscribeToX509SVIDRequest": _REFERENCE,
    "SubscribeToX509SVIDResponse": "svids=1:[X509SVID] crl=2:[bytes] federated_bundles=3:map<string,bytes>",
    "X509SVID": WORKLOAD["X509SVID"],
    "SubscribeToX509BundlesRequest": _REFERENCE,
    "SubscribeToX509BundlesResponse": WORKLOAD["X509BundlesResponse"],
    "FetchJWTSVIDRequest": f"{_REFERENCE} audience=2:[string] spiffe_id=3:string",
    "FetchJWTSVIDResponse": WORKLOAD["JWTSVIDResponse"],
    "JWTSVID": WORKLOAD["JWTSVID"],
    "SubscribeToJWTBundlesRequest": _REFERENCE,
    "SubscribeToJWTBundlesResponse": WORKLOAD["JWTBundlesResponse"],
}
REFLECTION = {
    "ServerReflectionRequest": "host=1:string "
    + " ".join(
        f"{field}<message_request>"
        for field in (
            "file_by_filename=3:string",
            "file_containing_symbol=4:string",
            "file_containing_extension=5:ExtensionRequest",
            "all_extension_numbers_of_type=6:string",
            "list_services=7:string",
        )
    ),
    "ExtensionRequest": "containing_type=1:string extension_number=2:int32",
    "ServerReflectionResponse": "valid_host=1:string original_request=2:ServerReflectionRequest "
    + " ".join(
        f"{field}<message_response>"
        for field in (
            "file_descriptor_response=4:FileDescriptorResponse",
            "all_extension_numbers_response=5:ExtensionNumberResponse",
            "list_services_response=6:ListServiceResponse",
            "error_response=7:ErrorResponse",
        )
    ),
    "FileDescriptorResponse": "file_descriptor_proto=1:[bytes]",
    "ExtensionNumberResponse": "base_type_name=1:string extension_number=2:[int32]",
    "ListServiceResponse": "service=1:[ServiceResponse]",
    "ServiceResponse": "name=1:string",
    "ErrorResponse": "error_code=1:int32 error_message=2:string",
}
PROPAGATION = {
    "FollowRequest": "hello=1:Hello<step> stamps=2:Stamps<step> ack=3:Ack<step>",
    "Hello": "position=1:string",
    "Stamps": "stamps=1:[Stamp] more=2:bool",
    "Stamp": "id=1:string revision_number=2:int64 created_at=3:int64",
    "Ack": "position=1:string streams_behind=2:int32",
    "FollowResponse": "position=1:string more=2:bool compare=3:bool entries=4:[Entry] "
    "removed_entries=5:[string] all_entries=6:bool bundle=7:Bundle "
    "federated_bundles=8:[Bundle] removed_bundles=9:[string] all_bundles=10:bool",
    "AwaitAgentsRequest": "revision=1:int64 timeout_ms=2:int64 agent_id=3:string",
    "AwaitAgentsResponse": "revision=1:int64 connected=2:int32 reached=3:int32 behind=4:[string] polling=5:int32 "
    "over=6:bool unknown=7:int32 unknown_agents=8:[string] unknown_since=9:int64 servers=10:int32 "
    "servers_owing=11:int32",
    "ListProgressRequest": "agent_id=1:string page_size=2:int32 page_token=3:string",
    "ListProgressResponse": "revision=1:int64 agents=2:[AgentProgress] next_page_token=3:string",
    "AgentProgress": "agent_id=1:string revision=2:int64 connected=3:bool polled_at=4:int64 streams_behind=5:int32 "
    "server_id=6:string unknown_since=7:int64",
    "CountInForceRequest": "entry_ids=1:[string]",
    "CountInForceResponse": "entries=1:[EntryInForce]",
    "EntryInForce": "entry_id=1:string agents=2:int32 reached=3:int32 behind=4:[string] polling=5:int32 unknown=6:int32",
}
EXPLAIN = {
    "ExplainRequest": "pid=1:int32<about> selectors=2:Selectors<about> refusal=3:string<about> caller=4:bool<about> "
    "pod=5:Pod<about>",
    "Pod": "namespace=1:string name=2:string",
    "Selectors": "selectors=1:[string]",
    "ExplainResponse": "code=1:string cause=2:string fix=3:string steps=4:[Step] containers=5:[Container]",
    "Container": "name=1:string init=2:bool process=3:int32 explanation=4:ExplainResponse",
    "Step": "name=1:string outcome=2:Outcome text=3:string details=4:[string]",
}
FEDERATION = {
    "ListStatesRequest": "trust_domain=1:string",
    "ListStatesResponse": "states=1:[State]",
    "State": "relationship=1:FederationRelationship configured=2:bool attempted_at=3:int64 fetched_at=4:int64 "
    "next_at=5:int64 failures=6:int32 error=7:string warnings=8:[string] has_bundle=9:bool sequence=10:uint64 "
    "x509_authorities=11:int32 jwt_authorities=12:int32 refresh_hint=13:int64",
    "InviteRequest": "url=1:string profile=2:string ttl=3:int64",
    "InviteResponse": "invitation=1:string expires_at=2:int64 warnings=3:[string]",
    "PreviewRequest": "invitation=1:string",
    "Key": "use=1:string key_id=2:string fingerprint=3:string",
    "PreviewResponse": "relationship=1:FederationRelationship keys=2:[Key] warnings=3:[string] expires_at=4:int64 "
    "sequence=5:uint64",
    "AcceptRequest": "invitation=1:string fingerprints=2:[string] url=3:string profile=4:string",
    "AcceptResponse": "invitation=1:string no_invitation=2:string warnings=3:[string]",
}
PACKAGES = {
    "muniment.agent.explain.v1": EXPLAIN,
    "muniment.server.explain.v1": {
        "ExplainRequest": "agent_id=1:string selectors=2:[string]",
        "ElsewhereRequest": "selectors=1:[string]",
        "ElsewhereResponse": "entries=1:int32 parent_id=2:string",
        "LintEntriesRequest": "ids=1:[string] ignored_codes=2:[string]",
        "LintEntriesResponse": "findings=1:[LintFinding] counts=2:map<string,int32> entries=3:int32 complete=4:bool",
        "LintFinding": "code=1:string entry_id=2:string spiffe_id=3:string text=4:string fix=5:string",
    },
    "grpc.reflection.v1": REFLECTION,
    "grpc.reflection.v1alpha": REFLECTION,
    "spiffe.broker": BROKER,
    "muniment.server.authorityorders.v1": ORDERS,
    "muniment.server.federation.v1": FEDERATION,
    "muniment.server.propagation.v1": PROPAGATION,
    "": WORKLOAD,
    "envoy.service.secret.v3": DISCOVERY,
    "envoy.extensions.transport_sockets.tls.v3": SECRET,
    "spire.api.types": TYPES,
    "spire.api.server.agent.v1": AGENT,
    "spire.api.server.bundle.v1": BUNDLE,
    "spire.api.server.entry.v1": ENTRY,
    "spire.api.server.svid.v1": SVID,
    "spire.api.server.trustdomain.v1": TRUST_DOMAIN,
    "spire.api.server.localauthority.v1": LOCAL_AUTHORITY,
    "spire.api.server.logger.v1": LOGGER,
    "spire.api.server.debug.v1": {
        "GetInfoRequest": "",
        "GetInfoResponse": "svid_chain=1:[Cert] uptime=2:int32 agents_count=3:int32 federated_bundles_count=4:int32 "
        "entries_count=5:int32",
        "GetInfoResponse.Cert": CERT,
    },
    "spire.api.agent.logger.v1": LOGGER,
    "spire.agent.debug.v1": {
        "GetInfoRequest": "",
        "GetInfoResponse": "svid_chain=1:[Cert] uptime=2:int32 svids_count=3:int32 last_sync_success=4:int64 "
        "cached_x509_svids_count=5:int32 cached_jwt_svids_count=6:int32 cached_svidstore_x509_svids_count=7:int32",
        "GetInfoResponse.Cert": CERT,
    },
    "spire.api.agent.delegatedidentity.v1": DELEGATED,
}
ENUMS = {
    "muniment.agent.explain.v1.Step.Outcome": "OUTCOME_UNSPECIFIED=0 OUTCOME_OK=1 OUTCOME_FAILED=2 OUTCOME_SKIPPED=3",
    "muniment.server.authorityorders.v1.Kind": "KIND_UNSPECIFIED=0 KIND_X509=1 KIND_JWT=2 KIND_WIT=3",
    "muniment.server.authorityorders.v1.Verb": "VERB_UNSPECIFIED=0 VERB_PREPARE=1 VERB_ACTIVATE=2 VERB_TAINT=3 "
    "VERB_REVOKE=4 VERB_DESTROY=5",
    "muniment.server.authorityorders.v1.Report.Status": "STATUS_UNSPECIFIED=0 STATUS_WAITING=1 STATUS_DONE=2 "
    "STATUS_FAILED=3 STATUS_GIVEN_UP=4",
    "spire.api.types.FederatesWithMatch.MatchBehavior": MATCH,
    "spire.api.types.SelectorMatch.MatchBehavior": MATCH,
    "spire.api.types.LogLevel": "UNSPECIFIED=0 PANIC=1 FATAL=2 ERROR=3 WARN=4 INFO=5 DEBUG=6 TRACE=7",
    "spire.api.types.PermissionDeniedDetails.Reason": "UNKNOWN=0 AGENT_EXPIRED=1 AGENT_NOT_ATTESTED=2 "
    "AGENT_NOT_ACTIVE=3 AGENT_BANNED=4 AGENT_MUST_REATTEST=5",
    "spire.api.server.bundle.v1.BatchDeleteFederatedBundleRequest.Mode": "RESTRICT=0 DELETE=1 DISSOCIATE=2",
}
LOGGER_METHODS = "GetLogger:>Logger SetLogLevel:>Logger ResetLogLevel:>Logger"
METHODS = {
    "muniment.agent.explain.v1.Explain": "Explain:>",
    "muniment.server.explain.v1.Explain": "Explain:>ExplainResponse Elsewhere:> LintEntries:>",
    "grpc.reflection.v1.ServerReflection": "ServerReflectionInfo:*ServerReflectionRequest>*ServerReflectionResponse",
    "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo:*ServerReflectionRequest>*ServerReflectionResponse",
    "muniment.server.federation.v1.Federation": "ListStates:> Invite:> Preview:> Accept:>",
    "muniment.server.propagation.v1.Propagation": "Follow:*>* AwaitAgents:>* ListProgress:> CountInForce:>",
    "muniment.server.authorityorders.v1.AuthorityOrders": "PlaceOrder:> GetOrder:> ListOrders:> ListAuthorities:> "
    "GiveUpServer:>",
    "spiffe.broker.API": "SubscribeToX509SVID:>* SubscribeToX509Bundles:>* FetchJWTSVID:> SubscribeToJWTBundles:>*",
    "SpiffeWorkloadAPI": "FetchX509SVID:X509SVIDRequest>*X509SVIDResponse "
    "FetchX509Bundles:X509BundlesRequest>*X509BundlesResponse FetchJWTSVID:JWTSVIDRequest>JWTSVIDResponse "
    "FetchJWTBundles:JWTBundlesRequest>*JWTBundlesResponse ValidateJWTSVID:> "
    "FetchWITSVID:WITSVIDRequest>*WITSVIDResponse FetchWITBundles:WITBundlesRequest>*WITBundlesResponse",
    "envoy.service.secret.v3.SecretDiscoveryService": "DeltaSecrets:*DeltaDiscoveryRequest>*DeltaDiscoveryResponse "
    "StreamSecrets:*DiscoveryRequest>*DiscoveryResponse FetchSecrets:DiscoveryRequest>DiscoveryResponse",
    "spire.api.server.agent.v1.Agent": "CountAgents:> ListAgents:> GetAgent:>Agent DeleteAgent:>Empty BanAgent:>Empty "
    "AttestAgent:*>* RenewAgent:> CreateJoinToken:>JoinToken PostStatus:>",
    "spire.api.server.bundle.v1.Bundle": "CountBundles:> GetBundle:>Bundle AppendBundle:>Bundle PublishJWTAuthority:> "
    "PublishWITAuthority:> ListFederatedBundles:> GetFederatedBundle:>Bundle BatchCreateFederatedBundle:> "
    "BatchUpdateFederatedBundle:> BatchSetFederatedBundle:> BatchDeleteFederatedBundle:>",
    "spire.api.server.entry.v1.Entry": "CountEntries:> ListEntries:> GetEntry:>Entry BatchCreateEntry:> "
    "BatchUpdateEntry:> BatchDeleteEntry:> GetAuthorizedEntries:> SyncAuthorizedEntries:*>*",
    "spire.api.server.svid.v1.SVID": "MintX509SVID:> MintJWTSVID:> MintWITSVID:> BatchNewX509SVID:> NewJWTSVID:> "
    "BatchNewWITSVID:> NewDownstreamX509CA:>",
    "spire.api.server.trustdomain.v1.TrustDomain": "ListFederationRelationships:> "
    "GetFederationRelationship:>FederationRelationship BatchCreateFederationRelationship:> "
    "BatchUpdateFederationRelationship:> BatchDeleteFederationRelationship:> RefreshBundle:>Empty",
    "spire.api.server.localauthority.v1.LocalAuthority": " ".join(
        f"{name.removesuffix('Request')}:>" for name in LOCAL_AUTHORITY if name.endswith("Request")
    ),
    "spire.api.server.logger.v1.Logger": LOGGER_METHODS,
    "spire.api.server.debug.v1.Debug": "GetInfo:>",
    "spire.api.agent.logger.v1.Logger": LOGGER_METHODS,
    "spire.agent.debug.v1.Debug": "GetInfo:>",
    "spire.api.agent.delegatedidentity.v1.DelegatedIdentity": "SubscribeToX509SVIDs:>* SubscribeToX509Bundles:>* "
    "FetchJWTSVIDs:> SubscribeToJWTBundles:>*",
}
"""`Name:request>response`; an asterisk before a side means that it streams; an empty side is NameRequest/NameResponse."""
