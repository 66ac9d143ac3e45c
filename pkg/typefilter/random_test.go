package typefilter_test

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

const (
	randomQueries = 1000 // for each kind of resources
	linesPerQuery = 20
)

// sample is a line and its decoded form.
type sample struct {
	line    []byte
	decoded any
}

func decode(t testing.TB, line []byte) sample {
	t.Helper()
	s := sample{line: bytes.Clone(line)}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if err := decoder.Decode(&s.decoded); err != nil {
		t.Fatal(err)
	}
	return s
}

// readSamples returns about most lines of each NDJSON file of the folder, spread over it, by type.
func readSamples(t testing.TB, dir string, most int) map[string][]sample {
	t.Helper()
	samples := map[string][]sample{}
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".gz") {
			unpacked, err := gzip.NewReader(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if text, err = io.ReadAll(unpacked); err != nil {
				t.Fatal(err)
			}
		}
		typ, _, _ := strings.Cut(filepath.Base(name), ".")
		every := max(1, bytes.Count(text, []byte("\n"))/most)
		scanner := bufio.NewScanner(bytes.NewReader(text))
		scanner.Buffer(nil, 64<<20)
		for i := 0; scanner.Scan(); i++ {
			if i%every == 0 && typ != "Group" {
				samples[typ] = append(samples[typ], decode(t, scanner.Bytes()))
			}
		}
		if err := scanner.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return samples
}

var seedFlag = flag.Uint64("seed", 0, "seed of TestAgainstTheOracle, 0 for another one each time")

// TestAgainstTheOracle compares the filter with the oracle: thousands of random queries, over resources of Synthea (where
// the sample is at hand), generated ones in the shape of US Core, and odd ones with values of every form at every path.
// -seed repeats a run.
func TestAgainstTheOracle(t *testing.T) {
	seed := cmp.Or(*seedFlag, rand.Uint64())
	t.Logf("seed %d", seed)
	o := newOracle(t)
	t.Run("synth", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := synth.Generate(t.Context(), synth.Config{Patients: 20, Seed: seed, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		compareAll(t, newRandom(seed), o, readSamples(t, dir, 150))
	})
	if dir, there := testenv.Synthea(t); there {
		t.Run("synthea", func(t *testing.T) {
			compareAll(t, newRandom(seed), o, readSamples(t, dir, 150))
		})
	}
	t.Run("odd", func(t *testing.T) {
		r := newRandom(seed)
		samples := map[string][]sample{}
		for _, typ := range slices.Sorted(maps.Keys(o)) {
			for range 60 {
				if !fhir.IsType(typ) {
					continue
				}
				line, err := json.Marshal(r.resource(typ, o[typ]))
				if err != nil {
					t.Fatal(err)
				}
				samples[typ] = append(samples[typ], decode(t, line))
			}
		}
		compareAll(t, r, o, samples)
	})
}

func compareAll(t *testing.T, r random, o oracle, samples map[string][]sample) {
	types := slices.Sorted(maps.Keys(samples))
	bases := fhir.Bases{ownBase}
	var refused, divided, kept, compared, bounded, leftOut int
	for range randomQueries {
		typ := pick(r, types)
		lines := samples[typ]
		var texts []string
		var queries []typefilter.Query
		for range 1 + r.IntN(5)/4 {
			text := r.query(typ, o[typ], pick(r, lines).decoded)
			q, err := typefilter.Parse(text)
			if err != nil {
				refused++
				continue
			}
			if again, err := typefilter.Parse(q.String()); err != nil || again.String() != q.String() {
				t.Fatalf("%s: read again as %s: %v", text, again, err)
			}
			texts, queries = append(texts, text), append(queries, q)
		}
		if len(queries) == 0 {
			continue
		}
		f := typefilter.Compile(typ, queries, bases)
		sketcher, bound := typefilter.NewSketcher(typ), f.Bound()
		if bound != nil {
			bounded++
		}
		yes := 0
		start := r.IntN(len(lines))
		for i := range min(linesPerQuery, len(lines)) {
			s := lines[(start+i)%len(lines)]
			want := slices.ContainsFunc(texts, func(text string) bool { return o.matches(t, text, s.decoded) })
			got, err := f.Matches(s.line)
			if err != nil || got != want {
				t.Fatalf("%q of\n%s\nis %v (%v), the oracle has %v", texts, s.line, got, err, want)
			}
			compared++
			sketch := sketcher.Sketch(s.line)
			if got {
				yes++
				if !meets(bound, sketch) {
					t.Fatalf("%q keeps\n%s\nand its bound %+v leaves it out, by %+v", texts, s.line, bound, sketch)
				}
			} else if !meets(bound, sketch) {
				leftOut++
			}
		}
		kept += yes
		if yes > 0 && yes < min(linesPerQuery, len(lines)) {
			divided++
		}
	}
	t.Logf("%d comparisons, %d matches; %d queries kept a part of the lines, %d were refused", compared, kept, divided, refused)
	t.Logf("%d queries had a bound, which left out %d of the %d lines that do not match", bounded, leftOut, compared-kept)
	if leftOut < compared/25 {
		t.Errorf("the bounds prove little: they left out %d of %d lines", leftOut, compared)
	}
	if divided < randomQueries/5 || refused > randomQueries/20 {
		t.Errorf("the queries prove little: of %d, %d kept a part of the lines, %d were refused", randomQueries, divided, refused)
	}
}

type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 0))} }

func pick[T any](r random, from []T) T { return from[r.IntN(len(from))] }

func (r random) chance(percent int) bool { return r.IntN(100) < percent }

var (
	systems = []string{"http://loinc.org", "http://a", "http://a|b", "urn:oid:1.2", "phone", "email", "", "http://unitsofmeasure.org"}
	codes   = []string{"a", "A", "b", "final", "x,y", "x|y", `x\y`, "$", "50% & more", "true", "a b", "é", "mg", "kg", "1"}
	words   = []string{"Ana", "ana", "ANNA", "Ána", "Straße", "Zoë van  Dijk", "O'Brien", "a", "New York", " Peter ", "Ångström", "\u00c5sa",
		"Ａ", "İ", "e\u0301", "x,y", "日本", "ﬁ", "Σίσυφος"}
	dateTexts = []string{"2020", "2020-02", "2020-02-29", "2019-12-31", "2020-02-29T10:00:00Z", "2020-02-29T10:00:00.5Z",
		"2020-02-29T23:30:00-05:00", "2020-03-01T04:30:00Z", "2020-02-29T10:00:00.123456+05:30", "2020-02-29T10:00Z",
		"2020-02-30", "2020-13", "soon", "", "2020-02-29T10", "2020-02-29T10:00:00", "0001", "9999-12-31", "2020-2-1", "2020-02-29T24:00:00Z"}
	numbers    = []string{"0", "5", "5.0", "5.4", "5.35", "5.45", "5.4499999999999999999", "-5.4", "100", "1e2", "99.5", "100.5", "1E-3", "0.001", "120", "110", "90"}
	references = []string{"Patient/1", "Patient/2", "Group/1", "Practitioner/1", "Patient/1/_history/2", "/Patient/1", "Patient/1#x",
		ownBase + "/Patient/1", "https://other.example/fhir/Patient/1", "https://other.example/Practitioner/2", "urn:uuid:0e3fd8d3-c0a8-4a9b-a0b5-1a1a6f0a8b1e",
		"#x", "Location/1", "Patient?identifier=a|b", "", "http://q.example/Questionnaire/x|1.0", ownBase + "/Group/1/_history/1"}
	samplesData = []string{"1 2 3", "5.4", "E", "U L", "", "-1 7 E 2.5", "5 100"}
)

func (r random) object(fields ...any) map[string]any {
	o := map[string]any{}
	for i := 0; i < len(fields); i += 2 {
		if !r.chance(15) {
			o[fields[i].(string)] = fields[i+1]
		}
	}
	return o
}

func (r random) number() any { return json.Number(pick(r, numbers)) }

func (r random) identifier() any {
	return r.object("system", pick(r, systems), "value", pick(r, codes), "type", map[string]any{"text": "x"})
}

func (r random) coding() any {
	return r.object("system", pick(r, systems), "code", pick(r, codes), "display", pick(r, words))
}

func (r random) quantity() any {
	q := r.object("value", r.number(), "unit", pick(r, codes), "system", pick(r, systems), "code", pick(r, codes))
	if r.chance(20) {
		q["comparator"] = pick(r, []string{"<", "<=", ">", ">=", "ad"})
	}
	return q
}

// value returns a value that parameters of the kind compare, and the data type that it has as a choice.
func (r random) value(kind string) (any, string) {
	if r.chance(5) {
		kind = pick(r, []string{"token", "date", "string", "reference", "quantity", "uri"})
	}
	switch n := r.IntN(10); kind {
	case "token":
		switch {
		case n < 4:
			return r.object("coding", []any{r.coding(), r.coding()}, "text", pick(r, words)), "CodeableConcept"
		case n < 5:
			return r.coding(), "Coding"
		case n < 6:
			return r.identifier(), "Identifier"
		case n < 7:
			return r.object("system", pick(r, []string{"phone", "email"}), "value", pick(r, codes)), "ContactPoint"
		case n < 8:
			return r.chance(50), "Boolean"
		}
		return pick(r, codes), "Code"
	case "date":
		period := r.object("start", pick(r, dateTexts), "end", pick(r, dateTexts))
		switch {
		case n < 3:
			return period, "Period"
		case n < 5:
			return r.object("event", []any{pick(r, dateTexts), pick(r, dateTexts)},
				"repeat", r.object("boundsPeriod", period, "frequency", 1)), "Timing"
		}
		return pick(r, dateTexts), "DateTime"
	case "string":
		switch {
		case n < 2:
			return r.object("family", pick(r, words), "given", []any{pick(r, words), nil, pick(r, words)}, "use", pick(r, words)), "HumanName"
		case n < 4:
			return r.object("line", []any{pick(r, words)}, "city", pick(r, words), "postalCode", "1", "type", "a"), "Address"
		}
		return pick(r, words), "String"
	case "reference":
		if n < 2 {
			return pick(r, references), "Canonical"
		}
		return r.object("reference", pick(r, references), "identifier", r.identifier(),
			"type", pick(r, []string{"Patient", "http://hl7.org/fhir/StructureDefinition/Patient", "Group"})), "Reference"
	case "number", "quantity":
		switch {
		case n < 2:
			return r.object("low", r.quantity(), "high", r.quantity()), "Range"
		case n < 3:
			return r.object("value", r.number(), "currency", "EUR"), "Money"
		case n < 5:
			return r.object("origin", r.quantity(), "factor", r.number(), "data", pick(r, samplesData)), "SampledData"
		case n < 7:
			return r.number(), "Decimal"
		}
		return r.quantity(), "Quantity"
	}
	return pick(r, slices.Concat(references, systems)), "Uri"
}

// resource returns a resource with values at the paths of some parameters.
func (r random) resource(typ string, rows []row) map[string]any {
	resource := map[string]any{"resourceType": typ, "id": pick(r, []string{"a", "b", "1"})}
	if r.chance(30) {
		resource["deceased"+pick(r, []string{"Boolean", "DateTime", "Age"})] = pick(r, []any{true, false, "2020"})
	}
	for range 1 + r.IntN(12) {
		row := pick(r, rows)
		if row.exists || row.code == "_id" {
			continue
		}
		value, as := r.value(row.kind)
		var names []string
		for _, step := range pick(r, row.terms) {
			name, argument, called := strings.Cut(strings.TrimSuffix(step, ")"), "(")
			switch {
			case !called:
				names = append(names, name)
			case name == "as":
				names[len(names)-1] += strings.ToUpper(argument[:1]) + argument[1:]
				as = ""
			}
		}
		if as != "" && r.chance(40) {
			names[len(names)-1] += as
		}
		switch {
		case r.chance(20):
			again, _ := r.value(row.kind)
			value = []any{value, nil, again}
		case r.chance(3):
			value = nil
		}
		r.put(resource, names, value)
	}
	return resource
}

func (r random) put(object map[string]any, names []string, value any) {
	if len(names) == 1 {
		object[names[0]] = value
		return
	}
	next := map[string]any{}
	switch known := object[names[0]].(type) {
	case map[string]any:
		next = known
	case []any:
		object[names[0]] = append(known, next)
	default:
		object[names[0]] = next
		if r.chance(40) {
			object[names[0]] = []any{next}
		}
	}
	r.put(next, names[1:], value)
}

var escapes = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `|`, `\|`, `$`, `\$`)

// query returns a query of which most values are near those of the resource.
func (r random) query(typ string, rows []row, resource any) string {
	var text strings.Builder
	text.WriteString(typ)
	for i := range 1 + r.IntN(6)/5 {
		row := pick(r, rows)
		for try := 0; try < 10 && len(row.value(resource)) == 0; try++ { // mostly one that the resource has
			row = pick(r, rows)
		}
		text.WriteString("?&"[i : i+1])
		nodes := row.value(resource)
		if r.chance(10) {
			fmt.Fprintf(&text, "%s:missing=%v", row.code, r.chance(50))
			continue
		}
		modifier := ""
		if row.kind == "string" {
			modifier = pick(r, []string{"", "", ":exact", ":contains"})
		}
		if row.kind == "reference" && r.chance(10) {
			modifier = ":identifier"
		}
		var values []string
		for range 1 + r.IntN(4)/2 {
			value, _ := r.value(row.kind)
			if len(nodes) > 0 && !r.chance(15) {
				value = pick(r, nodes).value
			}
			values = append(values, r.written(row.kind, modifier, value))
		}
		value := strings.NewReplacer("%", "%25", "&", "%26").Replace(strings.Join(values, ","))
		text.WriteString(row.code + modifier + "=" + value)
	}
	return text.String()
}

// written returns a value of a query that is near a value of a resource.
func (r random) written(kind, modifier string, value any) string {
	object, _ := value.(map[string]any)
	text, isText := value.(string)
	switch kind {
	case "token":
		return r.token(value)
	case "date":
		for _, name := range []string{"start", "end", "event"} {
			if found := spread(object[name], ""); len(found) > 0 && r.chance(70) {
				text, _ = found[0].value.(string)
			}
		}
		if _, _, ok := times(text); !ok {
			text = pick(r, dateTexts[:10])
		}
		if length := pick(r, []int{4, 7, 10, 99}); length < len(text) {
			text = text[:length]
		}
		return r.prefix() + text
	case "string":
		for _, name := range []string{"family", "given", "line", "city"} {
			if found := spread(object[name], ""); len(found) > 0 && r.chance(50) {
				text, _ = found[0].value.(string)
			}
		}
		letters := []rune(text)
		if len(letters) > 2 && r.chance(50) {
			from := 0
			if modifier == ":contains" {
				from = r.IntN(len(letters) - 1)
			}
			letters = letters[from : from+1+r.IntN(len(letters)-from-1)]
		}
		text = string(letters)
		if r.chance(50) {
			text = strings.ToUpper(text)
		}
		if simplified(text) == "" {
			text = "a"
		}
		return escapes.Replace(text)
	case "reference":
		if modifier != "" {
			return r.token(object["identifier"])
		}
		if !isText {
			text, _ = object["reference"].(string)
		}
		typ, id := resolved(text)
		switch n := r.IntN(4); {
		case id == "" && (strings.HasPrefix(text, "http") || strings.HasPrefix(text, "urn:")) && !strings.Contains(text, "/_history/"):
			return escapes.Replace(text)
		case id == "":
			return pick(r, []string{"1", "Patient/1", "Group/1"})
		case n == 0:
			return id
		case n == 1:
			return ownBase + "/" + typ + "/" + id
		default:
			return typ + "/" + id
		}
	case "number", "quantity":
		return r.amount(kind, value)
	}
	if text == "" {
		text = "http://a"
	}
	return escapes.Replace(text)
}

func (r random) prefix() string {
	return pick(r, []string{"", "", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
}

func (r random) token(value any) string {
	object, _ := value.(map[string]any)
	if found := spread(object["coding"], ""); len(found) > 0 {
		object, _ = pick(r, found).value.(map[string]any)
	}
	system, _ := object["system"].(string)
	code, isText := object["code"].(string)
	if !isText {
		code, _ = object["value"].(string)
	}
	switch v := value.(type) {
	case string, bool, json.Number:
		code = fmt.Sprint(v)
	}
	system, code = escapes.Replace(system), escapes.Replace(code)
	switch n := r.IntN(4); {
	case system == "" && code == "":
		return "a"
	case n == 0, system == "" && n == 1:
		return system + "|" + code
	case n == 1, code == "":
		return system + "|"
	case n == 2:
		return code
	}
	return "|" + code
}

func (r random) amount(kind string, value any) string {
	object, _ := value.(map[string]any)
	for _, name := range []string{"low", "high", "origin"} {
		if inner, ok := object[name].(map[string]any); ok && r.chance(70) {
			object = inner
		}
	}
	n, ok := value.(json.Number)
	if !ok {
		n, ok = object["value"].(json.Number)
	}
	text := n.String()
	if !ok || r.chance(30) {
		text = pick(r, numbers)
	}
	if whole, fraction, found := strings.Cut(text, "."); found && !strings.ContainsAny(text, "eE") {
		switch cut := r.IntN(len(fraction) + 3); {
		case cut == 0:
			text = whole
		case cut < len(fraction):
			text = whole + "." + fraction[:cut]
		case cut == len(fraction)+2:
			text += "0"
		}
	}
	text = r.prefix() + text
	if kind == "number" || r.chance(50) {
		return text
	}
	system, _ := object["system"].(string)
	code, _ := object["code"].(string)
	if unit, ok := object["unit"].(string); ok && r.chance(50) {
		system, code = "", unit
	}
	if currency, ok := object["currency"].(string); ok {
		system, code = "urn:iso:std:iso:4217", currency
	}
	if code == "" {
		code = "mg"
	}
	return text + "|" + escapes.Replace(system) + "|" + escapes.Replace(code)
}
