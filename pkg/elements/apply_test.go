package elements

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/synth"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func selection(t testing.TB, values ...string) Selection {
	t.Helper()
	s, err := Parse(values)
	must(t, err)
	return s
}

func TestApply(t *testing.T) {
	for name, test := range map[string]struct{ elements, line, want string }{
		"optional elements go": {
			"id", `{"resourceType":"Patient","id":"a","meta":{"versionId":"1"},"language":"en","text":{"status":"empty"},` +
				`"name":[{"family":"x"}],"birthDate":"1970-01-01","_birthDate":{"id":"b"},"extension":[{"url":"u"}]}`,
			`{"resourceType":"Patient","id":"a","meta":{"versionId":"1","tag":[TAG]}}`,
		},
		"a primitive comes with its sibling": {
			"Patient.birthDate", `{"resourceType":"Patient","birthDate":"1970","_birthDate":{"id":"b"},"_gender":{"id":"c"}}`,
			`{"resourceType":"Patient","birthDate":"1970","_birthDate":{"id":"b"},"meta":{"tag":[TAG]}}`,
		},
		"mandatory and modifier elements stay": {
			"Observation.id", `{"resourceType":"Observation","implicitRules":"r","modifierExtension":[1],"status":"final",` +
				`"_status":null,"code":{"text":"c"},"subject":{"reference":"Patient/a"},"contained":[{}],"valueString":"v"}`,
			`{"resourceType":"Observation","implicitRules":"r","modifierExtension":[1],"status":"final","_status":null,` +
				`"code":{"text":"c"},"meta":{"tag":[TAG]}}`,
		},
		"an optional modifier stays": {
			"id", `{"resourceType":"Patient","active":false,"deceasedDateTime":"2020","link":[{}],"gender":"male"}`,
			`{"resourceType":"Patient","active":false,"deceasedDateTime":"2020","link":[{}],"meta":{"tag":[TAG]}}`,
		},
		"a mandatory choice stays": {
			"id", `{"resourceType":"MedicationRequest","medicationReference":{"reference":"Medication/m"},"medicationX":1}`,
			`{"resourceType":"MedicationRequest","medicationReference":{"reference":"Medication/m"},"meta":{"tag":[TAG]}}`,
		},
		"a choice by its base name": {
			"value", `{"resourceType":"Observation","valueQuantity":{"value":1.50},"_valueString":{},"value":1,"valueSet":"x",` +
				`"valuequantity":2}`,
			`{"resourceType":"Observation","valueQuantity":{"value":1.50},"_valueString":{},"meta":{"tag":[TAG]}}`,
		},
		"order, numbers and escapes of the line": {
			"name,gender", ` { "name" : [ {"family":"\u00e9\/"} ] ,` + "\t" +
				`"gender":1.0e+02, "id" : "a", "resourceType":"Patient" } `,
			`{"name" : [ {"family":"\u00e9\/"} ],"gender":1.0e+02,"id" : "a","resourceType":"Patient","meta":{"tag":[TAG]}}`,
		},
		"an escaped key": {
			"name", `{"resourceType":"Patient","\u006eame":[],"\u0067ender":"male","\u006deta":{"\u0074ag":[]}}`,
			`{"resourceType":"Patient","\u006eame":[],"meta":{"tag":[TAG]}}`,
		},
		"keys that only look alike": {
			"name", `{"resourceType":"Patient","Name":1,"name ":2,"__name":3,"":4,"_":5,"n\u0000ame":6,"\ud800":7}`,
			`{"resourceType":"Patient","meta":{"tag":[TAG]}}`,
		},
		"other tags stay": {
			"id", `{"resourceType":"Patient","meta":{"tag":[{"system":"s","code":"SUBSETTED"}],"source":"x"}}`,
			`{"resourceType":"Patient","meta":{"tag":[{"system":"s","code":"SUBSETTED"},TAG],"source":"x"}}`,
		},
		"the tag is not doubled": {
			"id", `{"resourceType":"Patient","meta":{"tag":[{"code":"x"},TAG]}}`,
			`{"resourceType":"Patient","meta":{"tag":[{"code":"x"},TAG]}}`,
		},
		"an escaped tag is not doubled": {
			"id", `{"resourceType":"Patient","meta":{"tag":[` + strings.ReplaceAll(tag, "/", `\/`) + `]}}`,
			`{"resourceType":"Patient","meta":{"tag":[` + strings.ReplaceAll(tag, "/", `\/`) + `]}}`,
		},
		"no tags": {
			"id", `{"resourceType":"Patient","meta":{"tag":[ ]}}`,
			`{"resourceType":"Patient","meta":{"tag":[TAG]}}`,
		},
		"no meta of R4": {"id", `{"resourceType":"Patient","meta":null}`, `{"resourceType":"Patient","meta":{"tag":[TAG]}}`},
		"no tag of R4": {
			"id", `{"resourceType":"Patient","meta":{"tag":{}}}`,
			`{"resourceType":"Patient","meta":{"tag":[TAG]}}`,
		},
		"an empty meta":   {"id", `{"resourceType":"Patient","meta":{ }}`, `{"resourceType":"Patient","meta":{"tag":[TAG]}}`},
		"nothing is left": {"id", `{"gender":"male"}`, `{"meta":{"tag":[TAG]}}`},
		"an empty object": {"id", `{ }`, `{"meta":{"tag":[TAG]}}`},
		"an entry is twice": {
			"id,id", `{"resourceType":"Patient","id":"a"}`, `{"resourceType":"Patient","id":"a","meta":{"tag":[TAG]}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			typ := "Patient"
			for _, other := range []string{"Observation", "MedicationRequest"} {
				if strings.Contains(test.line, `"resourceType":"`+other+`"`) {
					typ = other
				}
			}
			line := strings.ReplaceAll(test.line, "TAG", tag)
			got, err := selection(t, test.elements).For(typ).Apply([]byte("before "), []byte(line))
			must(t, err)
			if want := "before " + strings.ReplaceAll(test.want, "TAG", tag); string(got) != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// TestApplyBroken: an error leaves the buffer as it was, and has no content of the line.
func TestApplyBroken(t *testing.T) {
	p := selection(t, "id").For("Patient")
	for _, line := range []string{
		``, `x`, `[]`, `{`, `{"id"`, `{"id":`, `{"id":"secret`, `{"id":"secret"`, `{"id":"secret",}`, `{"id":"secret"}}`,
		`{"id":"a"}{"id":"secret"}`, `{"id" "secret"}`, `{"id":secret}`, `{"id":"a" "secret":1}`,
		`{"meta":{"tag":[}}`, `{"meta":{"tag":[]`, "{\"id\":\n1}", `{"meta":` + strings.Repeat("[", 10001),
	} {
		got, err := p.Apply([]byte("before"), []byte(line))
		if err == nil || string(got) != "before" || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}

// rows are the cells of the table by type.
var rows = sync.OnceValue(func() map[string][][]string {
	types := map[string][][]string{}
	for row := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		cell := strings.Split(row, "\t")
		types[cell[0]] = append(types[cell[0]], cell)
	}
	return types
})

// expected is the oracle: it works on a decoded resource and reads the table by itself.
func expected(t testing.TB, typ string, entries []string, line []byte) map[string]any {
	t.Helper()
	var resource map[string]any
	must(t, json.Unmarshal(line, &resource))
	kept := map[string]any{}
	for key, value := range resource {
		if key == "resourceType" || key == "id" || key == "_id" || key == "meta" || key == "_meta" || key == "_resourceType" {
			kept[key] = value
		}
	}
	for _, cell := range rows()[typ] {
		base := strings.TrimSuffix(cell[1], "[x]")
		if cell[2] == "0" && cell[4] != "1" && !slices.Contains(entries, base) &&
			!slices.Contains(entries, typ+"."+base) {
			continue
		}
		for key, value := range resource {
			plain := strings.TrimPrefix(key, "_")
			if kind, of := strings.CutPrefix(plain, base); plain == base && base == cell[1] ||
				of && base != cell[1] && kind != "" && slices.ContainsFunc(strings.Split(cell[5], ","), func(k string) bool {
					return strings.EqualFold(k[:1], kind[:1]) && k[1:] == kind[1:] && kind[:1] == strings.ToUpper(kind[:1])
				}) {
				kept[key] = value
			}
		}
	}
	meta, _ := kept["meta"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	tags, _ := meta["tag"].([]any)
	if !slices.ContainsFunc(tags, func(one any) bool {
		coding, _ := one.(map[string]any)
		return coding["code"] == "SUBSETTED" && coding["system"] == "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	}) {
		tags = append(tags, map[string]any{
			"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED",
		})
	}
	meta["tag"] = tags
	kept["meta"] = meta
	return kept
}

// compare checks one line against the oracle, and that the scanner of the guard accepts the result.
func compare(t testing.TB, entries []string, typ string, line []byte) {
	t.Helper()
	p := selection(t, entries...).For(typ)
	if p == nil {
		for _, entry := range entries {
			if !strings.Contains(entry, ".") || strings.HasPrefix(entry, typ+".") {
				t.Fatalf("%v: %s stays whole", entries, typ)
			}
		}
		return
	}
	got, err := p.Apply(nil, line)
	must(t, err)
	if bytes.ContainsAny(got, "\r\n") {
		t.Fatalf("%v: several lines: %s", entries, got)
	}
	var decoded map[string]any
	must(t, json.Unmarshal(got, &decoded))
	if want := expected(t, typ, entries, line); !reflect.DeepEqual(decoded, want) {
		t.Fatalf("%v of %s\ngot  %s\nwant %v", entries, line, got, want)
	}
	again, err := p.Apply(nil, got)
	must(t, err)
	if !bytes.Equal(again, got) {
		t.Fatalf("a second projection changes the line: %s, then %s", got, again)
	}
}

// population has the lines of a small population by type.
var population = sync.OnceValues(func() (map[string][][]byte, error) {
	dir, err := os.MkdirTemp("", "elements")
	if err != nil {
		return nil, err
	}
	_, err = synth.Generate(context.Background(), synth.Config{Patients: 3, Seed: 14, Dir: filepath.Join(dir, "data")})
	files, _ := filepath.Glob(filepath.Join(dir, "data", "*.ndjson"))
	all := map[string][][]byte{}
	for _, name := range files {
		text, readErr := os.ReadFile(name)
		err = errors.Join(err, readErr)
		typ, _, _ := strings.Cut(filepath.Base(name), ".")
		all[typ] = append(all[typ], bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))...)
	}
	return all, errors.Join(err, os.RemoveAll(dir))
})

// randomEntries returns entries that Parse accepts: some of the type, some of another one, some without a prefix.
func randomEntries(random *rand.Rand, typ string) []string {
	types := slices.Sorted(maps.Keys(byType()))
	one := func(typ string) string {
		all := elementsOf(typ)
		return all[random.IntN(len(all))].name
	}
	var entries []string
	for range 1 + random.IntN(4) {
		other := types[random.IntN(len(types))]
		entries = append(entries, []string{one(typ), typ + "." + one(typ), other + "." + one(other), one(other)}[random.IntN(4)])
	}
	return entries
}

// TestAgainstOracle covers conformance P-19 and P-21 over generated resources.
func TestAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 14))
	lines, err := population()
	must(t, err)
	compared := 0
	for _, typ := range slices.Sorted(maps.Keys(lines)) {
		if elementsOf(typ) == nil {
			continue
		}
		for _, line := range lines[typ] {
			compare(t, randomEntries(random, typ), typ, line)
			compared++
		}
	}
	if compared < 500 {
		t.Errorf("only %d resources", compared)
	}
}

// TestAgainstOracleOnRandomResources: resources of every type of the table with keys in any order, some of them escaped, of
// other types or unknown.
func TestAgainstOracleOnRandomResources(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 14))
	values := []string{
		`1.0`, `null`, `"}\"{\\"`, `[]`, `{}`, `[{"a":[1,{"b":"]"}]},"x"]`, `{"id":"z","name":{"meta":1}}`, `"é"`, `-0e1`,
	}
	metas := []string{
		`{}`, `null`, `[1]`, `"x"`, `{"tag":[]}`, `{"tag":null}`, `{"tag":[` + tag + `]}`,
		`{"versionId":"1", "tag":[{"code":"x"} ]}`,
	}
	types := slices.Sorted(maps.Keys(byType()))
	for range 5000 {
		typ := types[random.IntN(len(types))]
		var keys []string
		for _, from := range []string{typ, typ, types[random.IntN(len(types))]} {
			for _, e := range elementsOf(from) {
				if random.IntN(3) == 0 {
					keys = append(keys, []string{"", "", "_", "x"}[random.IntN(4)]+e.keys[random.IntN(len(e.keys))])
				}
			}
		}
		slices.Sort(keys)
		keys = slices.Compact(keys)
		random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		line := []byte(`{`)
		for _, key := range keys {
			value := values[random.IntN(len(values))]
			switch key {
			case "meta":
				value = metas[random.IntN(len(metas))]
			case "resourceType":
				value = `"` + typ + `"`
			}
			quoted := `"` + key + `"`
			if random.IntN(8) == 0 {
				quoted = `"\u00` + string("0123456789abcdef"[key[0]>>4]) + string("0123456789abcdef"[key[0]&15]) + key[1:] + `"`
			}
			line = append(comma(line), []string{"", " "}[random.IntN(2)]+quoted+":"+value...)
		}
		compare(t, randomEntries(random, typ), typ, append(line, '}'))
	}
}

// FuzzApply: what the scanner of the guard accepts can be reduced, and the result has no more than the line had.
func FuzzApply(f *testing.F) {
	f.Add("id", []byte(`{"resourceType":"Patient","id":"a","meta":{"tag":[`+tag+`]},"name":[{"family":"x"}]}`))
	f.Add("value,Observation.code",
		[]byte(`{"resourceType":"Observation","id":"a","meta":{"tag":{}},"\u0076alueString":"\ud83d\ude00"}`))
	f.Fuzz(func(t *testing.T, value string, line []byte) {
		s, err := Parse([]string{value})
		if err != nil {
			return
		}
		var scanner fhir.Scanner
		facts, scanErr := scanner.Scan(line)
		typ := facts.Type
		if scanErr != nil {
			typ = "Patient"
		}
		p := s.For(typ)
		if p == nil {
			return
		}
		got, err := p.Apply(nil, line)
		switch {
		case err != nil && scanErr == nil:
			t.Fatalf("%v: %q", err, line)
		case err != nil:
			return
		case json.Valid(line) != json.Valid(got):
			t.Fatalf("%q became %q", line, got)
		}
		if after, err := scanner.Scan(got); scanErr == nil && (err != nil || after.Type != facts.Type || after.ID != facts.ID ||
			!after.LastUpdated.Equal(facts.LastUpdated) || after.Version != facts.Version) {
			t.Fatalf("%q became %q: %v", line, got, err)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	lines, err := population()
	must(b, err)
	for _, elements := range []string{"id,status", "id,code,subject,value,name,component"} {
		for _, typ := range []string{"Patient", "Observation", "DocumentReference", "CarePlan"} {
			b.Run(typ+"/"+elements, func(b *testing.B) {
				p := selection(b, elements).For(typ)
				var out []byte
				var total int64
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					line := lines[typ][i%len(lines[typ])]
					if out, err = p.Apply(out[:0], line); err != nil {
						b.Fatal(err)
					}
					total += int64(len(line))
				}
				b.SetBytes(total / int64(b.N))
			})
		}
	}
}
