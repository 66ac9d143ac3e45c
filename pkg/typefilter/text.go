package typefilter

import (
	"errors"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// texts are the values of a string parameter (R4 3.1.1.4.8).
type texts struct {
	values  []string // folded, but of :exact as they are
	compare func(text, value string) bool
	exact   bool
}

var errText = errors.New("nothing remains of a string without accents and white space")

func parseTexts(values []string, modifier string) (test, error) {
	all := texts{values: unescaped(values), compare: strings.HasPrefix}
	switch modifier {
	case "exact":
		all.exact = true
		return all, nil
	case "contains":
		all.compare = strings.Contains
	}
	for i, value := range all.values {
		if all.values[i] = fold(value); all.values[i] == "" {
			return nil, errText
		}
	}
	return all, nil
}

// textNames are the elements of a HumanName and of an Address that are strings.
var textNames = []string{"text", "family", "given", "prefix", "suffix",
	"line", "city", "district", "state", "postalCode", "country"}

// match compares a string, or each string of a HumanName or an Address.
func (all texts) match(value []byte) (bool, error) {
	if value[0] != '{' {
		return all.matchText(value)
	}
	var room [11][]byte
	found := room[:len(textNames)]
	if _, err := fhir.Fields(value, textNames, found); err != nil {
		return false, err
	}
	for _, value := range found {
		if value == nil {
			continue
		}
		if found, err := walk(value, nil, all.matchText); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func (all texts) matchText(value []byte) (bool, error) {
	if value[0] != '"' {
		return false, nil
	}
	text := string(fhir.Text(value))
	if all.exact {
		return slices.Contains(all.values, text), nil
	}
	text = fold(text)
	for _, value := range all.values {
		if all.compare(text, value) {
			return true, nil
		}
	}
	return false, nil
}

// fold removes case, combining characters such as accents, and white space that is not one blank between words.
func fold(text string) string {
	ascii := true
	for i := 0; i < len(text) && ascii; i++ {
		ascii = text[i] < 0x80
	}
	if ascii {
		text = strings.ToLower(text)
	} else {
		text = norm.NFKD.String(cases.Fold().String(norm.NFKD.String(text)))
		text = strings.Map(func(r rune) rune {
			if unicode.Is(unicode.Mn, r) {
				return -1
			}
			return r
		}, text)
	}
	return strings.Join(strings.Fields(text), " ")
}

// uris are the values of a uri parameter (R4 3.1.1.4.9). The whole text is compared.
type uris []string

func (all uris) match(value []byte) (bool, error) {
	return value[0] == '"' && slices.Contains(all, string(fhir.Text(value))), nil
}
