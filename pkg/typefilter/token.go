package typefilter

import (
	"errors"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// token is a value of a token parameter. A nil part matches anything.
type token struct{ system, code []byte }

type tokens []token

func parseTokens(values []string) (test, error) {
	var all tokens
	for _, value := range values {
		parts := split(value, '|')
		t := token{code: []byte(parts[len(parts)-1])}
		if len(parts) > 2 {
			return nil, errors.New("a token is system|code, |code, system| or code")
		}
		if len(parts) == 2 {
			t.system = []byte(parts[0])
			if len(t.code) == 0 {
				t.code = nil
			}
		}
		if len(t.system) == 0 && len(t.code) == 0 {
			return nil, errors.New("a token is system|code, |code, system| or code")
		}
		all = append(all, t)
	}
	return all, nil
}

var tokenNames = []string{"system", "code", "value", "coding"}

// match compares a Coding, an Identifier, a ContactPoint, a CodeableConcept, a string or a boolean. What is not an object
// has no system.
func (all tokens) match(value []byte) (bool, error) {
	switch value[0] {
	case '"':
		return all.contain(nil, fhir.Text(value)), nil
	case '{':
	default:
		return all.contain(nil, value), nil
	}
	var found [4][]byte
	if _, err := fhir.Fields(value, tokenNames, found[:]); err != nil {
		return false, err
	}
	if found[3] != nil {
		return walk(found[3], nil, all.match)
	}
	code := fhir.Text(found[1])
	if code == nil {
		code = fhir.Text(found[2])
	}
	return all.contain(fhir.Text(found[0]), code), nil
}

func (all tokens) contain(system, code []byte) bool {
	for _, t := range all {
		if (t.system == nil || string(t.system) == string(system)) && (t.code == nil || string(t.code) == string(code)) {
			return true
		}
	}
	return false
}
