package typefilter

import (
	"errors"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// tokens are the values of a token parameter (R4 3.1.1.4.10). Comparison is with case.
type tokens []token

// token is system|code. A part that is not set matches anything; an empty system matches a value without one.
type token struct {
	system, code       string
	anySystem, anyCode bool
}

var errToken = errors.New("a token is code, system|code, |code or system|")

func parseTokens(values []string) (test, error) {
	var all tokens
	for _, value := range values {
		t := token{anySystem: true}
		switch parts := fields(value); len(parts) {
		case 1:
			t.code = parts[0]
		case 2:
			t = token{system: parts[0], code: parts[1], anyCode: parts[1] == ""}
			if t.system == "" && t.code == "" {
				return nil, errToken
			}
		default:
			return nil, errToken
		}
		all = append(all, t)
	}
	return all, nil
}

var tokenNames = []string{"coding", "system", "code", "value"}

// match compares the tokens of a value.
func (all tokens) match(value []byte) (bool, error) { return eachToken(value, all.contain) }

// eachToken calls leaf for a Coding, an Identifier, a ContactPoint, each Coding of a CodeableConcept, or a string or a
// boolean, which have no system, until leaf returns true.
func eachToken(value []byte, leaf func(system, code []byte) bool) (bool, error) {
	switch value[0] {
	case '"':
		return leaf(nil, fhir.Text(value)), nil
	case '{':
	default:
		return leaf(nil, value), nil
	}
	var found [4][]byte
	if _, err := fhir.Fields(value, tokenNames, found[:]); err != nil {
		return false, err
	}
	if found[0] != nil {
		return walk(found[0], nil, func(value []byte) (bool, error) { return ofCoding(value, leaf) })
	}
	code := fhir.Text(found[2])
	if code == nil {
		code = fhir.Text(found[3])
	}
	return leaf(fhir.Text(found[1]), code), nil
}

// ofCoding calls leaf for one Coding of a CodeableConcept.
func ofCoding(value []byte, leaf func(system, code []byte) bool) (bool, error) {
	if value[0] != '{' {
		return false, nil
	}
	var found [2][]byte
	if _, err := fhir.Fields(value, tokenNames[1:3], found[:]); err != nil {
		return false, err
	}
	return leaf(fhir.Text(found[0]), fhir.Text(found[1])), nil
}

func (all tokens) contain(system, code []byte) bool {
	for i := range all {
		t := &all[i]
		if (t.anyCode || t.code == string(code)) && (t.anySystem || t.system == string(system)) {
			return true
		}
	}
	return false
}
