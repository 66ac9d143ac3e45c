package typefilter

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Query is one search, such as Observation?status=final&code=a,b: all of its conditions hold.
type Query struct {
	typ        string
	conditions []condition
}

// condition is one parameter of a query.
type condition struct {
	name  string // as in the query, with its modifier
	value string // as in the query, decoded from its URL form, with the escapes of FHIR
	paths []path
	test  test // nil for :missing

	missing bool // the value of :missing
}

// test compares the values that a parameter has in a line with those of a query.
type test interface {
	match(value []byte) (bool, error)
}

// Type returns the resource type of the query.
func (q Query) Type() string { return q.typ }

// String returns the text of the query in one form, which Parse reads again and Split does not divide.
func (q Query) String() string {
	var text strings.Builder
	text.WriteString(q.typ)
	for i, c := range q.conditions {
		text.WriteByte("?&"[min(i, 1)])
		text.WriteString(c.name + "=")
		for _, b := range []byte(c.value) {
			if b <= ' ' || b == 0x7f || strings.IndexByte("%&?#", b) >= 0 {
				fmt.Fprintf(&text, "%%%02X", b)
			} else {
				text.WriteByte(b)
			}
		}
	}
	return text.String()
}

// Split divides values of _typeFilter into queries: those of STU2 are lists, whose commas separate only before a resource
// type and a question mark, because values have commas too (P-32).
func Split(values []string) []string {
	var queries []string
	for _, value := range values {
		start := 0
		for i := range len(value) {
			if value[i] != ',' {
				continue
			}
			if typ, _, found := strings.Cut(value[i+1:], "?"); found && fhir.IsType(typ) {
				queries = append(queries, value[start:i])
				start = i + 1
			}
		}
		queries = append(queries, value[start:])
	}
	return queries
}

// Parse reads one query, such as Observation?status=final. The text is decoded once more from its URL form, in which a "+"
// stays one: it is in the zones of dates. Errors are for the client (P-33, P-34): they name the type and the parameter and
// tell what is supported, and never have a value.
func Parse(text string) (Query, error) {
	typ, rest, found := strings.Cut(text, "?")
	if !found || !fhir.IsType(typ) {
		return Query{}, errors.New("a query of _typeFilter is a resource type of R4, a question mark and search parameters")
	}
	q := Query{typ: typ}
	for pair := range strings.SplitSeq(rest, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		c, err := parseCondition(typ, name, value)
		if err != nil {
			return Query{}, fmt.Errorf("%s: %w", typ, err)
		}
		q.conditions = append(q.conditions, c)
	}
	if len(q.conditions) == 0 {
		return Query{}, fmt.Errorf("%s: the query has no search parameter", typ)
	}
	return q, nil
}

// nameForm is that of a parameter with its modifier, or of a chain. Anything else is not repeated in an error: it may be a
// misplaced token, whose parts have digits.
var nameForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,39}(:[A-Za-z-]{1,40})?([.:][A-Za-z_-]{1,40}){0,4}$`)

// ofTheAnswer are parameters that do not select resources (P-33).
var ofTheAnswer = []string{"_contained", "_containedType", "_count", "_elements", "_format", "_include", "_offset",
	"_pretty", "_revinclude", "_sort", "_summary", "_total"}

// ofAnIndex are parameters that need more than the resource itself.
var ofAnIndex = []string{"_content", "_filter", "_has", "_list", "_query", "_text", "_type"}

func parseCondition(typ, name, value string) (c condition, err error) {
	if c.name, err = url.PathUnescape(name); err != nil || !nameForm.MatchString(c.name) {
		return c, errors.New("the name of a search parameter is not valid")
	}
	if c.value, err = url.PathUnescape(value); err != nil {
		return c, fmt.Errorf("%s: the value is not URL-encoded", c.name)
	}
	if !utf8.ValidString(c.value) {
		return c, fmt.Errorf("%s: the value is not UTF-8", c.name)
	}
	base, modifier, modified := strings.Cut(c.name, ":")
	d, found := define(typ, base)
	switch {
	case slices.Contains(ofTheAnswer, base):
		return c, fmt.Errorf("%s is not supported: it changes the answer of a search, not which resources match", c.name)
	case slices.Contains(ofAnIndex, base):
		return c, fmt.Errorf("%s is not supported: parameters search in elements of the resource itself", c.name)
	case strings.Contains(c.name, "."):
		return c, fmt.Errorf("%s is not supported: parameters cannot be chained", c.name)
	case found && !d.supported():
		return c, fmt.Errorf("%s is not supported: it is of the type %s; the parameters are %s", c.name, d.Type, names(typ))
	case !found:
		return c, fmt.Errorf("%s is not a supported search parameter; those are %s", c.name, names(typ))
	case modified && !d.allows(modifier):
		return c, fmt.Errorf("%s: the modifier is not supported; those of %s are %s", c.name, base,
			strings.Join(append(modifiers[d.Type], "missing"), ", "))
	}
	if c.paths, err = d.compile(); err != nil {
		return c, err
	}
	values, err := split(c.value, ',')
	if err == nil && slices.Contains(values, "") {
		err = errors.New("a value is empty")
	}
	if err == nil && modifier == "missing" {
		if c.missing = c.value == "true"; !c.missing && c.value != "false" {
			err = errors.New("it is true or false")
		}
	} else if err == nil {
		c.test, err = d.parse(values, modifier)
	}
	if err != nil {
		return c, fmt.Errorf("%s: the value is not valid: %w", c.name, err)
	}
	return c, nil
}

// modifiers are those of the types of parameters, beside missing.
var modifiers = map[string][]string{
	"string":    {"exact", "contains"},
	"reference": {"identifier", "a resource type"},
}

// allows reports whether parameters of the definition have the modifier.
func (d definition) allows(modifier string) bool {
	switch {
	case modifier == "missing", d.Type == "reference" && modifier == "identifier":
		return true
	case d.Type == "reference":
		return fhir.IsType(modifier) && (d.targets == nil || slices.Contains(d.targets, modifier))
	}
	return slices.Contains(modifiers[d.Type], modifier)
}

// parse reads the values of a parameter, which are alternatives.
func (d definition) parse(values []string, modifier string) (test, error) {
	switch d.Type {
	case "token":
		return parseTokens(values)
	case "date":
		return parseDates(values)
	case "string":
		return parseTexts(values, modifier)
	case "number", "quantity":
		return parseQuantities(values, d.Type == "quantity")
	case "uri":
		return uris(unescaped(values)), nil
	}
	if modifier != "identifier" {
		return parseReferences(values, modifier)
	}
	all, err := parseTokens(values)
	if err != nil {
		return nil, err
	}
	return identified{all}, nil
}

// names returns the names of the supported parameters.
func names(typ string) string {
	var all []string
	for _, p := range Parameters(typ) {
		all = append(all, p.Name)
	}
	return strings.Join(all, ", ")
}
