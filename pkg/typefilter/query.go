package typefilter

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

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

func parseCondition(typ, name, value string) (condition, error) {
	name, err := url.PathUnescape(name)
	if err != nil || !nameForm.MatchString(name) {
		return condition{}, errors.New("the name of a search parameter is not understood")
	}
	c := condition{name: name}
	if c.value, err = url.PathUnescape(value); err != nil {
		return condition{}, fmt.Errorf("the value of %s is not URL-encoded", name)
	}
	base, modifier, modified := strings.Cut(name, ":")
	d, found := define(typ, base)
	if !found || !d.supported() {
		return condition{}, fmt.Errorf("the search parameter %s is not supported; those of the type are %s", name, names(typ))
	}
	if c.paths, err = d.compile(); err != nil {
		return condition{}, err
	}
	values := split(c.value, ',')
	if slices.Contains(values, "") {
		return condition{}, fmt.Errorf("%s has an empty value", name)
	}
	_ = modifier
	if modified || d.Type != "token" {
		return condition{}, fmt.Errorf("%s is not supported", name)
	}
	if c.test, err = parseTokens(values); err != nil {
		return condition{}, fmt.Errorf("the value of %s is not valid: %w", name, err)
	}
	return c, nil
}

func names(typ string) string {
	var all []string
	for _, p := range Parameters(typ) {
		all = append(all, p.Name)
	}
	return strings.Join(all, ", ")
}
