package token

// SMART is the document at {base}/.well-known/smart-configuration of a server for backend services (SMART App Launch,
// conformance). It has no authorization endpoint, which needs a user, and no issuer or jwks_uri, which are for single
// sign-on (B-02 to B-07).
type SMART struct {
	TokenEndpoint        string   `json:"token_endpoint"`
	GrantTypes           []string `json:"grant_types_supported"`
	AuthMethods          []string `json:"token_endpoint_auth_methods_supported"`
	AuthAlgorithms       []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	Scopes               []string `json:"scopes_supported"`
	CodeChallengeMethods []string `json:"code_challenge_methods_supported"`
	Capabilities         []string `json:"capabilities"`
}

// SMARTConfiguration describes a token service. tokenEndpoint is absolute; secrets adds HTTP Basic.
func SMARTConfiguration(tokenEndpoint string, secrets bool) SMART {
	document := SMART{
		TokenEndpoint:        tokenEndpoint,
		GrantTypes:           []string{"client_credentials"},
		AuthMethods:          []string{"private_key_jwt"},
		AuthAlgorithms:       AssertionAlgorithms(),
		Scopes:               []string{"system/*.rs", "system/*.read"},
		CodeChallengeMethods: []string{"S256"}, // required, even without authorization codes
		Capabilities:         []string{"client-confidential-asymmetric", "permission-v1", "permission-v2"},
	}
	if secrets {
		document.AuthMethods = append(document.AuthMethods, "client_secret_basic")
		document.Capabilities = append(document.Capabilities, "client-confidential-symmetric")
	}
	return document
}
