package token

import (
	"errors"
	"fmt"
)

// ErrInvalid is returned for a refused token or assertion; a token's response is 401. Its text names the violated rule and
// never contains any part of the token. RuleOf returns the rule.
var ErrInvalid = errors.New("invalid token")

// Rule is the name of the rule that a refused token or assertion violates: a label of a metric and a word of a log line.
type Rule string

// The rules.
const (
	RuleMalformed   Rule = "malformed"     // not a token, or a claim or header is missing or malformed
	RuleKind        Rule = "kind"          // another kind of token: typ, token_type, or bound to a key
	RuleExpired     Rule = "expired"       // exp has passed
	RuleNotYetValid Rule = "not_yet_valid" // nbf or iat is in the future
	RuleTooLong     Rule = "too_long_lived"
	RuleIssuer      Rule = "issuer"    // unknown, or iss and sub differ
	RuleAudience    Rule = "audience"  // issued for another audience
	RuleAlgorithm   Rule = "algorithm" // not accepted
	RuleKey         Rule = "key"       // unknown, ambiguous, or not for the algorithm
	RuleSignature   Rule = "signature" // does not verify
	RuleClaim       Rule = "claim"     // a required claim is missing or has another value
	RuleScope       Rule = "scope"     // cannot be applied
	RuleInactive    Rule = "inactive"  // by the issuer's introspection
)

// refusal is an ErrInvalid with its rule.
type refusal struct {
	rule  Rule
	cause error // the text, or an error that a caller distinguishes
}

func (r refusal) Error() string   { return fmt.Sprintf("%v: %v", ErrInvalid, r.cause) }
func (r refusal) Unwrap() []error { return []error{ErrInvalid, r.cause} }

func invalid(rule Rule, text string) error { return refusal{rule, errors.New(text)} }

// RuleOf returns the rule of an ErrInvalid, and "" for another error.
func RuleOf(err error) Rule {
	var r refusal
	_ = errors.As(err, &r)
	return r.rule
}
