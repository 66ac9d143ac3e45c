package typefilter_test

import (
	"encoding/json"
	"math/big"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
	"golang.org/x/text/unicode/norm"
)

// The oracle is a second evaluator, slow and without code of the package: it decodes the whole resource, interprets the
// expressions of the table on it, and calculates with rational numbers.

const ownBase = "https://own.example/fhir"

type row struct {
	code, kind string
	terms      [][]string // the steps of each term of the expression, in one form: value, as(Quantity)
	exists     bool       // whether there is a value other than false
}

type oracle map[string][]row

func newOracle(t testing.TB) oracle {
	t.Helper()
	text, err := os.ReadFile("search-parameters-r4.tsv")
	if err != nil {
		t.Fatal(err)
	}
	o := oracle{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
		f := strings.Split(line, "\t")
		if f[3] != "" && f[2] != "composite" && f[2] != "special" {
			r := row{code: f[1], kind: f[2], exists: strings.Contains(f[3], "exists()")}
			for _, term := range strings.Split(f[3], " | ") {
				term = strings.NewReplacer(" as ", ".as(", "resolve() is ", "is:").Replace(strings.TrimPrefix(term, "("))
				r.terms = append(r.terms, strings.Split(term, ".")[1:])
			}
			o[f[0]] = append(o[f[0]], r)
		}
	}
	for typ := range o {
		if typ != "Resource" {
			o[typ] = append(o[typ], o["Resource"]...)
		}
	}
	return o
}

// node is a value with its data type if it is that of a choice element.
type node struct {
	value any
	typ   string
}

var choiceTypes = strings.Fields(`Base64Binary Boolean Canonical Code Date DateTime Decimal Id Instant Integer Markdown Oid
	PositiveInt String Time UnsignedInt Uri Url Uuid Address Age Annotation Attachment CodeableConcept Coding ContactPoint
	Count Distance Duration HumanName Identifier Money Period Quantity Range Ratio Reference SampledData Signature Timing`)

// compared are the data types that a parameter of a type compares.
var compared = map[string]string{
	"token":     " CodeableConcept Coding Code Identifier ContactPoint Boolean String Uri ",
	"date":      " DateTime Period Date Instant Timing ",
	"string":    " String ",
	"reference": " Reference Canonical Uri ",
	"number":    " Decimal Integer Range ",
	"quantity":  " Quantity Age Duration Money Range SampledData ",
	"uri":       " Uri ",
}

func spread(value any, typ string) (nodes []node) {
	switch v := value.(type) {
	case nil:
	case []any:
		for _, e := range v {
			if _, nested := e.([]any); nested { // not FHIR
				continue
			}
			nodes = append(nodes, spread(e, typ)...)
		}
	default:
		nodes = append(nodes, node{value, typ})
	}
	return nodes
}

// child goes to an element. Only the last one of a path, and one before "as", may be a choice.
func child(parents []node, name string, choice bool) (nodes []node) {
	for _, p := range parents {
		object, ok := p.value.(map[string]any)
		if !ok {
			continue
		}
		nodes = append(nodes, spread(object[name], "")...)
		if !choice {
			continue
		}
		for _, typ := range choiceTypes {
			nodes = append(nodes, spread(object[name+typ], typ)...)
		}
	}
	return nodes
}

func only(nodes []node, keep func(node) bool) []node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n node) bool { return !keep(n) })
}

// value returns what the parameter has in the resource.
func (r row) value(resource any) (nodes []node) {
	if r.exists {
		dead := only(child([]node{{resource, ""}}, "deceased", true), func(n node) bool {
			return n.value != false && (n.typ == "Boolean" || n.typ == "DateTime")
		})
		return []node{{len(dead) > 0, "Boolean"}}
	}
	for _, steps := range r.terms {
		at := []node{{resource, ""}}
		for i, step := range steps {
			name, argument, called := strings.Cut(strings.TrimSuffix(step, ")"), "(")
			switch {
			case !called:
				at = child(at, name, i == len(steps)-1 || strings.Contains(steps[i+1], "("))
			case name == "as":
				at = only(at, func(n node) bool { return strings.EqualFold(n.typ, argument) })
			case strings.HasPrefix(argument, "is:"):
				at = only(at, func(n node) bool { return targetType(n.value) == argument[3:] })
			default:
				at = only(at, func(n node) bool {
					object, _ := n.value.(map[string]any)
					return object["system"] == strings.Trim(argument[len("system="):], "'")
				})
			}
		}
		nodes = append(nodes, at...)
	}
	return only(nodes, func(n node) bool { return n.typ == "" || strings.Contains(compared[r.kind], " "+n.typ+" ") })
}

// matches evaluates a valid query.
func (o oracle) matches(t testing.TB, query string, resource any) bool {
	typ, conditions, _ := strings.Cut(query, "?")
	for _, pair := range strings.Split(conditions, "&") {
		name, value, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			t.Fatal(err)
		}
		code, modifier, _ := strings.Cut(name, ":")
		i := slices.IndexFunc(o[typ], func(r row) bool { return r.code == code })
		nodes := o[typ][i].value(resource)
		if modifier == "missing" {
			if (len(nodes) == 0) != (value == "true") {
				return false
			}
			continue
		}
		if !slices.ContainsFunc(nodes, func(n node) bool {
			return slices.ContainsFunc(cut(value, ","), func(one string) bool {
				return compare(t, o[typ][i].kind, modifier, one, n.value)
			})
		}) {
			return false
		}
	}
	return true
}

// cut divides at separators outside of escapes.
func cut(text, separator string) []string {
	if !strings.Contains(text, `\`) {
		return strings.Split(text, separator)
	}
	text = strings.NewReplacer(`\`+separator, "\x01", `\\`, "\x02").Replace(text)
	parts := strings.Split(text, separator)
	for i := range parts {
		parts[i] = strings.NewReplacer("\x01", `\`+separator, "\x02", `\\`).Replace(parts[i])
	}
	return parts
}

var escaped = regexp.MustCompile(`\\(.)`)

func plain(text string) string { return escaped.ReplaceAllString(text, "$1") }

func compare(t testing.TB, kind, modifier, value string, v any) bool {
	object, _ := v.(map[string]any)
	switch {
	case kind == "token":
		return compareToken(value, v)
	case kind == "date":
		return compareDate(t, value, v)
	case kind == "string":
		return compareString(modifier, plain(value), v)
	case kind == "uri":
		return v == any(plain(value))
	case kind == "number", kind == "quantity":
		return compareQuantity(t, value, v)
	case modifier == "identifier":
		return slices.ContainsFunc(spread(object["identifier"], ""), func(n node) bool { return compareToken(value, n.value) })
	}
	return compareReference(modifier, plain(value), v)
}

func compareToken(value string, v any) bool {
	var system, code any
	switch x := v.(type) {
	case map[string]any:
		if x["coding"] != nil {
			return slices.ContainsFunc(spread(x["coding"], ""), func(n node) bool {
				coding, ok := n.value.(map[string]any)
				return ok && compareToken(value, map[string]any{"system": coding["system"], "code": coding["code"]})
			})
		}
		system, code = x["system"], x["code"]
		if _, ok := code.(string); !ok {
			code = x["value"]
		}
	case bool:
		code = map[bool]string{true: "true", false: "false"}[x]
	case json.Number:
		code = x.String()
	default:
		code = v
	}
	parts := cut(value, "|")
	if len(parts) == 1 {
		return code == any(plain(value))
	}
	text, _ := system.(string)
	return text == plain(parts[0]) && (parts[1] == "" || code == any(plain(parts[1])))
}

var dateForm = regexp.MustCompile(`^(\d{4})(-\d\d)?(-\d\d)?(T\d\d:\d\d)?(:\d\d)?(\.\d+)?(Z|[+-]\d\d:\d\d)?$`)

// times returns the first nanosecond of a value and the first one after it.
func times(text string) (from, to time.Time, ok bool) {
	m := dateForm.FindStringSubmatch(text)
	if m == nil {
		return from, to, false
	}
	layout := "2006"
	for i, part := range []string{"-01", "-02", "T15:04", ":05"} {
		if m[i+2] != "" {
			layout += part
		}
	}
	if m[7] == "" && m[4] != "" {
		text += "Z"
	}
	if m[4] != "" {
		layout += "Z07:00"
	}
	from, err := time.Parse(layout, text)
	switch {
	case err != nil || m[6] != "" && m[5] == "":
		return from, to, false
	case m[6] != "":
		width := time.Second
		for range len(m[6]) - 1 {
			width /= 10
		}
		return from, from.Add(width), true
	case m[5] != "":
		return from, from.Add(time.Second), true
	case m[4] != "":
		return from, from.Add(time.Minute), true
	case m[3] != "":
		return from, from.AddDate(0, 0, 1), true
	case m[2] != "":
		return from, from.AddDate(0, 1, 0), true
	}
	return from, from.AddDate(1, 0, 0), true
}

func limits(v any) (from, to time.Time, ok bool) {
	early, late := time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
	object, isObject := v.(map[string]any)
	start, end := object["start"], object["end"]
	switch {
	case !isObject:
		text, _ := v.(string)
		return times(text)
	case start != nil || end != nil:
		from, to, ok = early, late, true
		if start != nil {
			text, _ := start.(string)
			f, _, good := times(text)
			from, ok = f, good
		}
		if end != nil {
			text, _ := end.(string)
			_, e, good := times(text)
			to, ok = e, ok && good
		}
		return from, to, ok
	}
	parts := append(spread(object["event"], ""), child(spread(object["repeat"], ""), "bounds", true)...)
	for _, n := range parts {
		if n.typ != "" && n.typ != "Period" {
			continue
		}
		f, e, good := limits(n.value)
		if !good {
			continue
		}
		if !ok || f.Before(from) {
			from = f
		}
		if !ok || e.After(to) {
			to = e
		}
		ok = true
	}
	return from, to, ok
}

var prefixForm = regexp.MustCompile(`^(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.*)$`)

func compareDate(t testing.TB, value string, v any) bool {
	m := prefixForm.FindStringSubmatch(value)
	from, to, ok := times(m[2])
	if !ok {
		t.Fatalf("the oracle cannot read the date %q", m[2])
	}
	low, high, ok := limits(v)
	if !ok {
		return false
	}
	contained := low.Compare(from) >= 0 && high.Compare(to) <= 0
	return map[string]bool{
		"": contained, "eq": contained, "ne": !contained,
		"gt": high.Compare(to) > 0, "lt": low.Compare(from) < 0,
		"ge": high.Compare(from) > 0, "le": low.Compare(to) < 0,
		"sa": low.Compare(to) >= 0, "eb": high.Compare(from) <= 0,
		"ap": low.Compare(to) < 0 && from.Compare(high) < 0,
	}[m[1]]
}

var (
	blanks = regexp.MustCompile(`\s+`)
	simple = map[string]string{} // of texts seen before
)

func simplified(text string) string {
	if text, ok := simple[text]; ok {
		return text
	}
	before := text
	strip := transform.Chain(norm.NFKD, runes.Remove(runes.In(unicode.Mn)), norm.NFKC)
	text, _, _ = transform.String(strip, text)
	text = strings.ReplaceAll(strings.ToLower(strings.ToUpper(text)), "ß", "ss")
	text = strings.TrimSpace(blanks.ReplaceAllString(text, " "))
	simple[before] = text
	return text
}

func compareString(modifier, value string, v any) bool {
	switch x := v.(type) {
	case string:
		switch modifier {
		case "exact":
			return x == value
		case "contains":
			return strings.Contains(simplified(x), simplified(value))
		}
		return strings.HasPrefix(simplified(x), simplified(value))
	case map[string]any:
		for _, name := range strings.Fields("text family given prefix suffix line city district state postalCode country") {
			for _, n := range spread(x[name], "") {
				if _, ok := n.value.(string); ok && compareString(modifier, value, n.value) {
					return true
				}
			}
		}
	}
	return false
}

var localForm = regexp.MustCompile(`^/?([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(/_history/[A-Za-z0-9.-]{1,64})?(#.*)?$`)

// resolved returns the type and the id of a local reference.
func resolved(text string) (typ, id string) {
	if rest, own := strings.CutPrefix(text, ownBase+"/"); own && !strings.HasPrefix(rest, "/") {
		text = rest
	}
	if m := localForm.FindStringSubmatch(text); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

func targetType(v any) string {
	object, _ := v.(map[string]any)
	text, _ := object["reference"].(string)
	if typ, _ := resolved(text); typ != "" {
		return typ
	}
	if m := regexp.MustCompile(`^https?://[^#? ]+/([A-Z][A-Za-z]+)/[A-Za-z0-9.-]+$`).FindStringSubmatch(text); m != nil {
		return m[1]
	}
	declared, _ := object["type"].(string)
	return strings.TrimPrefix(declared, "http://hl7.org/fhir/StructureDefinition/")
}

func compareReference(modifier, value string, v any) bool {
	text, isText := v.(string)
	if object, ok := v.(map[string]any); ok {
		text, isText = object["reference"].(string)
	}
	if !isText {
		return false
	}
	typ, id := resolved(text)
	if !strings.ContainsAny(value, "/:") {
		return id == value && (modifier == "" || typ == modifier)
	}
	if wantedType, wantedID := resolved(value); wantedID != "" {
		return typ == wantedType && id == wantedID
	}
	return text == value
}

func rational(text string) *big.Rat {
	n, ok := new(big.Rat).SetString(text)
	if !ok || text == "" {
		return nil
	}
	return n
}

// amount is a range of numbers; nil is no limit.
type amount struct {
	low, high       *big.Rat
	aboveLow        bool // the low limit is not in it
	belowHigh       bool
	units           []map[string]any
	lowFree, upFree bool
}

func quantityOf(v any) (a amount, ok bool) {
	object, _ := v.(map[string]any)
	n, ok := object["value"].(json.Number)
	if !ok {
		return a, false
	}
	a.low, a.units = rational(n.String()), []map[string]any{object}
	a.high = a.low
	switch comparator, _ := object["comparator"].(string); comparator {
	case "<", "<=":
		a.lowFree, a.belowHigh = true, comparator == "<"
	case ">", ">=":
		a.upFree, a.aboveLow = true, comparator == ">"
	case "":
	default:
		return a, false
	}
	return a, true
}

func amountOf(v any) (a amount, ok bool) {
	object, _ := v.(map[string]any)
	if n, ok := v.(json.Number); ok {
		return amount{low: rational(n.String()), high: rational(n.String())}, true
	}
	switch {
	case object["value"] != nil:
		return quantityOf(v)
	case object["low"] != nil || object["high"] != nil:
		a.lowFree, a.upFree = true, true
		if object["low"] != nil {
			low, ok := quantityOf(object["low"])
			if !ok {
				return a, false
			}
			a.low, a.lowFree, a.units = low.low, low.lowFree, append(a.units, low.units...)
		}
		if object["high"] != nil {
			high, ok := quantityOf(object["high"])
			if !ok {
				return a, false
			}
			a.high, a.upFree, a.units = high.high, high.upFree, append(a.units, high.units...)
		}
		return a, true
	case object["origin"] != nil:
		origin, ok := quantityOf(object["origin"])
		data, _ := object["data"].(string)
		if !ok || origin.lowFree || origin.upFree {
			return a, false
		}
		factor := big.NewRat(1, 1)
		if n, ok := object["factor"].(json.Number); ok {
			factor = rational(n.String())
		}
		a = amount{units: origin.units}
		for _, text := range strings.Fields(data) {
			n := rational(text)
			if n == nil {
				continue
			}
			n = n.Add(n.Mul(n, factor), origin.low)
			if a.low == nil || n.Cmp(a.low) < 0 {
				a.low = n
			}
			if a.high == nil || n.Cmp(a.high) > 0 {
				a.high = n
			}
		}
		return a, a.low != nil
	}
	return a, false
}

func compareQuantity(t testing.TB, value string, v any) bool {
	a, ok := amountOf(v)
	if !ok {
		return false
	}
	parts := cut(value, "|")
	if len(parts) == 3 {
		for _, u := range a.units {
			system, code, unit := u["system"], u["code"], u["unit"]
			if u["currency"] != nil {
				system, code, unit = "urn:iso:std:iso:4217", u["currency"], nil
			}
			if parts[0+1] != "" && (system != any(plain(parts[1])) || code != any(plain(parts[2]))) ||
				parts[1] == "" && code != any(plain(parts[2])) && unit != any(plain(parts[2])) {
				return false
			}
		}
		if len(a.units) == 0 {
			return false
		}
	}
	m := prefixForm.FindStringSubmatch(parts[0])
	n := rational(m[2])
	if n == nil {
		t.Fatalf("the oracle cannot read the number %q", m[2])
	}
	mantissa, exponent, _ := strings.Cut(strings.ToLower(m[2]), "e")
	_, fraction, _ := strings.Cut(mantissa, ".")
	half := rational("0.5e-" + big.NewInt(int64(len(fraction))).String())
	if exponent != "" {
		half.Mul(half, rational("1e"+exponent))
	}
	if tenth := new(big.Rat).Abs(new(big.Rat).Quo(n, big.NewRat(10, 1))); m[1] == "ap" && tenth.Cmp(half) > 0 {
		half = tenth
	}
	from, to := new(big.Rat).Sub(n, half), new(big.Rat).Add(n, half)
	// Comparisons of the limits, in which no limit is beyond every number.
	low := func(with *big.Rat) int {
		if a.lowFree {
			return -1
		}
		return a.low.Cmp(with)
	}
	high := func(with *big.Rat) int {
		if a.upFree {
			return 1
		}
		return a.high.Cmp(with)
	}
	equal := low(from) >= 0 && high(to) < 0
	return map[string]bool{
		"": equal, "eq": equal, "ne": !equal, "gt": high(n) > 0, "lt": low(n) < 0,
		"ge": high(n) > 0 || high(n) == 0 && !a.belowHigh,
		"le": low(n) < 0 || low(n) == 0 && !a.aboveLow,
		"sa": low(n) > 0 || low(n) == 0 && a.aboveLow,
		"eb": high(n) < 0 || high(n) == 0 && a.belowHigh,
		"ap": (low(to) < 0 || low(to) == 0 && !a.aboveLow) && (high(from) > 0 || high(from) == 0 && !a.belowHigh),
	}[m[1]]
}
