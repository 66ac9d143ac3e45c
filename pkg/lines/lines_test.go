package lines_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestInFolder(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "folder")
	for _, name := range []string{
		"b.ndjson", "a.ndjson.gz", "a.NDJSON", "a.json", "a.json.gz", "1.Patient.000.jsonl", ".hidden.ndjson", "..data/a.ndjson",
		"real/b.txt", "c.ndjson/d.ndjson", "a.csv", "ndjson", "deleted/1.ndjson", "z/deleted/1.ndjson", "z/e.ndjson",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"folder/linked.ndjson": "real/b.txt", "folder/null.ndjson": os.DevNull, "folder/out.ndjson": "../outside.ndjson",
		"folder/dangling.ndjson": "nowhere", "link": "folder",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "outside.ndjson"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dir, dir + "/", filepath.Join(root, "link")} {
		folder, err := lines.InFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		var found, broken []string
		for _, file := range folder.Files {
			found = append(found, fmt.Sprint(file.Name(), " ", file.Size))
			content, err := file.Open()
			if err != nil {
				t.Errorf("open %s: %v", file.Path, err)
				continue
			}
			must(t, content.Close())
		}
		for _, file := range folder.Broken {
			broken = append(broken, file.Name)
		}
		if want := []string{
			"1.Patient.000.jsonl 19", "a.NDJSON 8", "a.json 6", "a.json.gz 9", "a.ndjson.gz 11", "b.ndjson 8", "c.ndjson/d.ndjson 17", "linked.ndjson 10",
			"z/e.ndjson 10", "z/deleted/1.ndjson 18", "deleted/1.ndjson 16",
		}; !slices.Equal(found, want) {
			t.Errorf("%s: found %v, want %v", dir, found, want)
		}
		if want := []string{"dangling.ndjson", "null.ndjson", "out.ndjson"}; !slices.Equal(broken, want) {
			t.Errorf("%s: broken %v, want %v", dir, broken, want)
		}
		if want := []string{"a.csv", "ndjson", "real/b.txt"}; !slices.Equal(folder.Other, want) {
			t.Errorf("%s: other files %v, want %v", dir, folder.Other, want)
		}
	}
	if _, err := lines.InFolder(filepath.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func zipped(t testing.TB, text string) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write([]byte(text))
	must(t, errors.Join(err, w.Close()))
	return out.String()
}

// readAll returns the lines of one file, with their places, and the reason why the rest is broken.
func readAll(t *testing.T, name, content string) (texts, places []string, broken error) {
	t.Helper()
	var mu sync.Mutex
	r := lines.Reader{
		BlockSize: 16, MaxLine: 400, Takers: 1,
		Open: func(int) (lines.Text, error) {
			return lines.Open(name, 400, true, func() io.Reader { return strings.NewReader(content) })
		},
		Broken: func(_ int, err error) { mu.Lock(); defer mu.Unlock(); broken = err },
	}
	must(t, r.Read(t.Context(), []lines.File{{Path: name}}, func(_ context.Context, b *lines.Block) error {
		mu.Lock()
		defer mu.Unlock()
		for line := range b.Lines {
			text := string(line.Body)
			if line.TooLong {
				text = "too long"
			}
			texts, places = append(texts, text), append(places, b.Place(line))
		}
		return nil
	}))
	return texts, places, broken
}

const pretty = "\ufeff{\r\n  \"type\": \"transaction\",\n \"entry\": [\n" + `
	{ "fullUrl": "urn:uuid:e", "resource": { "resourceType": "Encounter", "subject": { "reference": "urn:uuid:p" },
		"x": [ {"reference": "https://h/f/Organization/o/_history/2#x"}, {"reference": "urn:uuid:other"}, {"reference":"#e"} ] } },
	{ "fullUrl": "urn:uuid:p", "resource": {
		"resourceType": "Patient",
		"id": "1" } },
	{ "fullUrl": "https://h/f/Organization/o", "resource": {"resourceType": "Organization"} },
	{ "resource": {"resourceType": "Patient"}, "request": {"method": "PUT", "url": "Patient/7"} },
	{ "request": {"method": "DELETE", "url": "Observation/9"} },
	{ "request": {"method": "PATCH", "url": "Patient/1"}, "resource": {"resourceType": "Binary"} },
	7
	], "resourceType": "Bundle" }`

var unbundled = []string{
	`{"id":"e","resourceType":"Encounter","subject":{"reference":"Patient/1"},"x":[{"reference":"Organization/o"},{"reference":"urn:uuid:other"},{"reference":"#e"}]}`,
	`{"resourceType":"Patient","id":"1"}`,
	`{"id":"o","resourceType":"Organization"}`,
	`{"id":"7","resourceType":"Patient"}`,
	`{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Observation/9"}}]}`,
	`{"resourceType":"Bundle","entry":[{"request":{"method":"PATCH","url":"Patient/1"},"resource":{"resourceType":"Binary"}}]}`,
	`{"resourceType":"Bundle","entry":[7]}`,
}

func TestFilesOfEveryFormBecomeLines(t *testing.T) {
	var compact bytes.Buffer
	must(t, json.Compact(&compact, []byte(strings.TrimPrefix(pretty, "\ufeff"))))
	bundle := compact.String()
	patient := `{"resourceType":"Patient","id":"1"}`
	for name, test := range map[string]struct {
		file, content string
		want          []string
		entries       bool
		broken        string
	}{
		"NDJSON":                        {"x.ndjson", patient + "\n" + patient, []string{patient, patient}, false, ""},
		"NDJSON by another name":        {"x.json", patient + "\r\n" + patient + "\r\n", []string{patient, patient}, false, ""},
		"marks before lines":            {"x", "\ufeff" + patient + "\n\ufeff" + patient, []string{patient, patient}, false, ""},
		"gzip by its name":              {"x.ndjson.gz", zipped(t, patient), []string{patient}, false, ""},
		"gzip without its name":         {"x.ndjson", zipped(t, patient), []string{patient}, false, ""},
		"plain with the name of gzip":   {"x.ndjson.gz", patient, []string{patient}, false, ""},
		"nothing with the name of gzip": {"x.ndjson.gz", "", nil, false, ""},
		"two gzips":                     {"x.gz", zipped(t, patient+"\n") + zipped(t, patient), []string{patient, patient}, false, ""},
		"Bundle over many lines":        {"x.ndjson", pretty, unbundled, true, ""},
		"Bundle over many lines, gzip":  {"x.json.gz", zipped(t, pretty), unbundled, true, ""},
		"Bundle on a line":              {"x.json", bundle, unbundled, true, ""},
		"Bundles as lines":              {"x.ndjson", bundle + "\n\n" + bundle + "\n", append(slices.Clone(unbundled), unbundled...), true, ""},
		"Bundle between lines":          {"x.ndjson", patient + "\n" + bundle + "\n" + patient, append(append([]string{patient}, unbundled...), patient), false, ""},
		"Bundles one after the other":   {"x.json", pretty[3:] + pretty[3:], append(slices.Clone(unbundled), unbundled...), true, ""},
		"array":                         {"x.json", "[\n" + patient + ",\n" + pretty[3:] + "]", append([]string{patient}, unbundled...), true, ""},
		"resource over many lines":      {"x.json", "{\n\"resourceType\":\n\"Patient\", \"id\":\"1\"}\n", []string{patient}, true, ""},
		"nothing but white space":       {"x.json", " \n\t\n", nil, false, ""},
		"cut line before others":        {"x.ndjson", patient[:len(patient)-9] + "\r\n" + patient + "\n" + patient, []string{patient[:len(patient)-9], patient, patient}, false, ""},
		"cut line before one":           {"x.ndjson", `{"resourceType":"Patient","name":[` + "\n\n" + patient + "\n", []string{`{"resourceType":"Patient","name":[`, patient}, false, ""},
		"an entry on each line":         {"x.ndjson", `{"resourceType":"Bundle","entry":[` + "\n{\"resource\":" + patient + "},\n{\"resource\":" + patient + "}\n]}", []string{patient, patient}, true, ""},
		"one entry on a line":           {"x.ndjson", `{"resourceType":"Bundle","entry":[` + "\n{\"resource\":" + patient + "}\n]}", []string{patient}, true, ""},
		"log":                           {"x.ndjson", "a\nb", []string{"a", "b"}, false, ""},
		"long line":                     {"x.ndjson", patient + "\n" + strings.Repeat("x", 500) + "\n" + patient, []string{patient, "too long", patient}, false, ""},
		"gzip that ends too early":      {"x.gz", zipped(t, patient+"\n"+random(400_000))[:100_000], []string{patient}, false, "decompress: unexpected EOF"},
		"gzip without a header":         {"x.gz", "\x1f\x8b\x00\x00", nil, false, "decompress: "},
		"Bundle that ends too early":    {"x.json", pretty[:len(pretty)-20], nil, false, "read a JSON document: unexpected EOF"},
		"Bundle with an error":          {"x.json", strings.Replace(pretty, `"PUT"`, `"PUT`, 1), nil, false, "not valid JSON at byte "},
		"Bundle whose entry is no array": {"x.ndjson", `{"resourceType":"Bundle","entry":null}` + "\n" + patient,
			[]string{`{"resourceType":"Bundle","entry":null}`, patient}, true, ""},
		"full URL of two entries": {"x.json", `{"resourceType":"Bundle","entry":[{"fullUrl":"urn:uuid:d","resource":{"resourceType":"Patient","id":"q2"}},` +
			`{"fullUrl":"urn:uuid:d","resource":` + patient + `},{"resource":{"resourceType":"Flag","id":"f","subject":{"reference":"urn:uuid:d"}}}]}`,
			[]string{`{"resourceType":"Patient","id":"q2"}`, patient, `{"resourceType":"Flag","id":"f","subject":{"reference":"urn:ambiguous"}}`}, true, ""},
		"entries that parsers read differently": {"x.json", `{"resourceType":"Bundle","entry":[{"fullUrl":"urn:uuid:a","resource":{"resourceType":"Patient","ID":"1"}},` +
			`{"fullUrl":"urn:uuid:b","resource":{"resourceType":"Patient","id":"9","id":"1"}},{"fullUrl":"urn:uuid:\ud800","resource":` + patient + `},` +
			`{"resource":{"resourceType":"Account","id":"f","subject":[{"reference":"urn:uuid:a"},{"reference":"urn:uuid:b"},{"reference":"urn:uuid:\udc01"}]}}]}`,
			[]string{`{"resourceType":"Patient","ID":"1"}`, `{"resourceType":"Patient","id":"9","id":"1"}`, patient,
				`{"resourceType":"Account","id":"f","subject":[{"reference":"urn:ambiguous"},{"reference":"urn:ambiguous"},{"reference":"urn:ambiguous"}]}`}, true, ""},
		"Entry":                  {"x.json", `{"resourceType":"Bundle","Entry":[{"resource":` + patient + `}]}`, nil, false, "a key of a Bundle"},
		"entry and Entry":        {"x.json", `[` + patient + `,{"resourceType":"Bundle","entry":[{"resource":` + patient + `}],"Entry":[]}]`, nil, false, "a key of a Bundle"},
		"entry twice":            {"x.json", `{"resourceType":"Bundle","entry":[],"entry":[{"resource":` + patient + `}]}`, nil, false, "a key of a Bundle"},
		"entry with a NUL":       {"x.json", `{"resourceType":"Bundle","entry\u0000":[{"resource":` + patient + `}]}`, nil, false, "a key of a Bundle"},
		"type twice":             {"x.json", `{"resourceType":"Bundle","entry":[],"resourceType":"Patient"}`, nil, false, "a key of a Bundle"},
		"escaped type":           {"x.ndjson", `{"resourceType":"\u0042undle","entry":[{"resource":` + patient + `}]}`, []string{patient}, true, ""},
		"another escaped type":   {"x.ndjson", `{"note":"caf\u00e9","resourceType":"Bundl\u0065","entry":[{"resource":` + patient + `}]}`, []string{patient}, true, ""},
		"Entry on a line":        {"x.ndjson", deletion("Entry") + "\n" + patient, []string{deletion("Entry"), patient}, true, ""},
		"type in capitals":       {"x.ndjson", strings.Replace(deletion("entry"), "r", "R", 1), []string{strings.Replace(deletion("entry"), "r", "R", 1)}, true, ""},
		"not a Bundle, odd keys": {"x.json", `{"resourceType":"Patient","entry":[],"Entry":2,"id":"1"}`, []string{`{"resourceType":"Patient","entry":[],"Entry":2,"id":"1"}`}, true, ""},
		"entries with two resources": {"x.json", `{"resourceType":"Bundle","entry":[{"resource":` + patient + `,"Resource":` + patient + `},{"resource":` + patient + `,"resource":{}},` +
			`{"Resource":` + patient + `},{"resource":` + patient + `,"request":{"method":"PUT","Method":"PATCH"}},{"resource":` + patient + `}]}`,
			[]string{`{"resourceType":"Bundle","entry":[{"resource":` + patient + `,"Resource":` + patient + `}]}`, `{"resourceType":"Bundle","entry":[{"resource":` + patient + `,"resource":{}}]}`,
				`{"resourceType":"Bundle","entry":[{"Resource":` + patient + `}]}`, `{"resourceType":"Bundle","entry":[{"resource":` + patient + `,"request":{"method":"PUT","Method":"PATCH"}}]}`, patient}, true, ""},
		"white space": {"x.json", `{"resourceType":"Bundle",` + strings.Repeat(" \n", 2<<20) + `"entry" : [` + strings.Repeat("\t", 4<<20) + `{"resource":` + patient + `}` +
			strings.Repeat(" ", 100_000) + `] }` + strings.Repeat("\n", 100_000), []string{patient}, true, ""},
		"entry that is too long": {"x.json", "{\n\"resourceType\":\"Bundle\",\"entry\":[\n{\"x\":\"" + strings.Repeat("x", 2<<20) + "\"},{\"resource\":" + patient + "}]}",
			[]string{"too long", patient}, true, ""},
		"value that is too long": {"x.json", "[\n{\"x\":\n[" + strings.Repeat("[\"x\"],\n", 1<<18) + "[]]}," + patient + "]", []string{"too long", patient}, true, ""},
		"history of a deleted resource": {"x.json", `{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Flag/f"}},{"resource":` + patient +
			`,"request":{"method":"PUT","url":"Patient/1"}}],` + "\n" + `"type":"history"}`, []string{past(`{"request":{"method":"DELETE","url":"Flag/f"}}`),
			past(`{"resource":` + patient + `,"request":{"method":"PUT","url":"Patient/1"}}`)}, true, ""},
		"a Bundle as the resource of an entry": {"x.json", `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":` + deletion("entry") +
			`},{"resource":{"resourceType":"B\u0075ndle","entry":[]}},{"resource":` + patient + `}]}`,
			[]string{`{"resourceType":"Bundle","entry":[{"resource":` + deletion("entry") + `}]}`,
				`{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"B\u0075ndle","entry":[]}}]}`, patient}, true, ""},
		"JSON that is not FHIR":     {"x.json", `{"entry":"x"}`, []string{`{"entry":"x"}`}, true, ""},
		"an array of other values":  {"x.json", `[1,{"entry":{}},[2]]`, []string{"1", `{"entry":{}}`, "[2]"}, true, ""},
		"a Bundle without an array": {"x.json", `{"entry":"x","resourceType":"Bundle"}`, nil, false, "the entries of a Bundle are not an array"},
		"history on a line":         {"x.ndjson", past(`{"resource":`+patient+`}`) + "\n" + patient, []string{past(`{"resource":` + patient + `}`), patient}, true, ""},
		"history in capitals":       {"x.ndjson", strings.Replace(past(`{"resource":`+patient+`}`), "history", "History", 1), []string{past(`{"resource":` + patient + `}`)}, true, ""},
		"Type of a Bundle":          {"x.json", strings.Replace(past(""), `"type"`, `"Type"`, 1), nil, false, "a key of a Bundle"},
		"a number in two":           {"x.json", "{\n" + `"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Observation","id":"o","valueInteger":1 ` + "\n" + ` 2}}]}`, nil, false, "not valid JSON at byte "},
		"a word in two":             {"x.json", `{"resourceType":"Patient","id":"1","active":tr ue}`, nil, false, "not valid JSON at byte "},
		"a minus in front":          {"x.json", `[{"resourceType":"Observation","id":"o","valueInteger":- 1}]`, nil, false, "not valid JSON at byte "},
		"values without a comma":    {"x.json", `[` + patient + ` ` + patient + `]`, nil, false, "not valid JSON at byte "},
		"a comma at the end":        {"x.json", `{"resourceType":"Bundle","entry":[{"resource":` + patient + `},]}`, nil, false, "not valid JSON at byte "},
		"numbers and words": {"x.json", "{\"resourceType\":\"Patient\",\n \"id\":\"1\", \"a\":[ 1 , -2.5e+1\n] , \"b\": {\"c\" : true\n} ,\"d\":null }",
			[]string{`{"resourceType":"Patient","id":"1","a":[1 ,-2.5e+1 ],"b":{"c":true },"d":null }`}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, places, broken := readAll(t, test.file, test.content)
			if !slices.Equal(got, test.want) {
				t.Errorf("got %d lines\n%s\nwant %d\n%s", len(got), strings.Join(got, "\n"), len(test.want), strings.Join(test.want, "\n"))
			}
			if len(places) > 0 && strings.HasPrefix(places[0], "entry") != test.entries {
				t.Errorf("the first line is %s", places[0])
			}
			if (broken != nil) != (test.broken != "") || broken != nil && !strings.Contains(broken.Error(), test.broken) {
				t.Errorf("broken: %v, want %q", broken, test.broken)
			}
		})
	}
}

// TestBasesOfFullURLs: a caller learns from which servers the entries of Bundles are.
func TestBasesOfFullURLs(t *testing.T) {
	entry := func(url string) string {
		return `{"fullUrl":"` + url + `","resource":{"resourceType":"Patient","id":"1"}}`
	}
	bundle := func(entries ...string) string {
		return `{"resourceType":"Bundle","entry":[` + strings.Join(entries, ",") + `]}`
	}
	a, b := entry("https://A.example/fhir/Patient/1"), entry("http://b.example/Patient/2")
	for content, want := range map[string]map[string]string{
		bundle(entry("urn:uuid:x"), a, b, a):                    {"https://a.example/fhir": "entry 2", "http://b.example": "entry 3"},
		"{\n" + bundle(a)[1:] + bundle(b):                       {"https://a.example/fhir": "entry 1", "http://b.example": "entry 2"},
		"{}\n\n" + bundle(entry("x"), a) + "\n{}\n" + bundle(b): {"https://a.example/fhir": "line 4", "http://b.example": "line 6"},
		bundle(entry("https://a.example/fhir/Group/1"), entry("https://a.example"), `{"fullUrl":"https://c.example/Patient/1"}`): {"https://a.example/fhir": "entry 1"},
		past(a):                             nil,
		`{"resourceType":"Patient"}` + "\n": nil,
	} {
		var got map[string]string
		r := lines.Reader{
			BlockSize: 64, MaxLine: 1000, Takers: 1,
			Open: func(int) (lines.Text, error) {
				return lines.Open("x.json", 1000, true, func() io.Reader { return strings.NewReader(content) })
			},
			Broken: func(_ int, err error) { t.Error(err) },
			Base: func(_ int, base, place string, _ int64) {
				if got == nil {
					got = map[string]string{}
				}
				got[base] = place
			},
		}
		must(t, r.Read(t.Context(), []lines.File{{}}, func(context.Context, *lines.Block) error { return nil }))
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", content, got, want)
		}
	}
}

// random returns text that does not compress well.
func random(n int) string {
	var text strings.Builder
	for seed := uint32(1); text.Len() < n; seed = seed*1664525 + 1013904223 {
		fmt.Fprintf(&text, "%08x", seed)
	}
	return text.String()
}

// deletion returns a Bundle of one deletion, with another name of the element entry.
func deletion(entry string) string {
	return `{"resourceType":"Bundle","` + entry + `":[{"request":{"method":"DELETE","url":"Patient/1"}}]}`
}

// past returns an entry of a Bundle of the type history as Open writes it.
func past(entry string) string {
	return `{"resourceType":"Bundle","type":"history","entry":[` + entry + `]}`
}

func TestDeletionIsABundleOfOneDelete(t *testing.T) {
	for line, want := range map[string]fhir.Ref{
		unbundled[4]: {Type: "Observation", ID: "9"}, unbundled[5]: {}, unbundled[6]: {},
		`{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Observation?identifier=x"}}]}`: {},
		`{"resourceType":"Bundle"}`: {}, `{`: {}, deletion("entry"): {Type: "Patient", ID: "1"}, deletion("Entry"): {},
		strings.Replace(deletion("entry"), "r", "R", 1):                                   {}, // ResourceType
		strings.Replace(deletion("entry"), "method", "Method", 1):                         {},
		strings.Replace(deletion("entry"), "Patient/1", "Patient/1/_history/3", 1):        {},
		strings.Replace(deletion("entry"), "Patient/1", "/Patient/1", 1):                  {Type: "Patient", ID: "1"},
		`{"resourceType":"Bundle","entry":[{"resource":` + deletion("entry") + `}]}`:      {},
		past(`{"request":{"method":"DELETE","url":"Patient/1"}}`):                         {},
		strings.Replace(deletion("entry"), "Patient/1", `Patient/1","url":"Patient/2`, 1): {},
	} {
		if got, ok := lines.Deletion([]byte(line)); ok != (want != fhir.Ref{}) || ok && got != want {
			t.Errorf("%s: %v, %t", line, got, ok)
		}
	}
}

// A flipped bit changes values, and only the checksum, which comes last, shows it.
func TestNothingOfADamagedGzipIsRead(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var text strings.Builder
	for n := range 5000 {
		fmt.Fprintf(&text, `{"resourceType":"Patient","id":"%d","value":"%x"}`+"\n", n, random.Uint64())
	}
	whole := zipped(t, text.String())
	for name, damage := range map[string]func(content []byte) []byte{
		"a flipped bit": func(content []byte) []byte { content[len(content)-1000] ^= 1; return content },
		"the checksum":  func(content []byte) []byte { content[len(content)-8] ^= 1; return content },
	} {
		got, _, broken := readAll(t, "x.ndjson.gz", string(damage([]byte(whole))))
		if len(got) != 0 || broken == nil {
			t.Errorf("%s: %d lines, broken: %v", name, len(got), broken)
		}
	}
	if got, _, broken := readAll(t, "x.ndjson.gz", whole[:len(whole)-1000]); len(got) < 4000 || broken == nil {
		t.Errorf("cut off: %d lines, broken: %v; want what comes before", len(got), broken)
	}
}

// TestReadFailsWhenTheFileCannotBeRead: unlike broken content, an error of the disk ends the read.
func TestReadFailsWhenTheFileCannotBeRead(t *testing.T) {
	failed := errors.New("the disk is gone")
	for name, content := range map[string]string{"x.ndjson": "a\n", "x.gz": zipped(t, random(200_000))[:50_000], "x.json": pretty} {
		r := lines.Reader{
			BlockSize: 16, MaxLine: 1000, Takers: 1,
			Open: func(int) (lines.Text, error) {
				return lines.Open(name, 1000, true, func() io.Reader {
					return lines.FromFile(io.MultiReader(strings.NewReader(content), iotest.ErrReader(failed)))
				})
			},
			Broken: func(_ int, err error) { t.Errorf("%s is taken for broken: %v", name, err) },
		}
		err := r.Read(t.Context(), []lines.File{{Path: name}}, func(context.Context, *lines.Block) error { return nil })
		if !errors.Is(err, failed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestEntriesAreNotCopied: an entry of a Bundle takes about as much memory as the same resource on a line.
func TestEntriesAreNotCopied(t *testing.T) {
	const size = 8 << 20
	resource := `{"resourceType":"Binary","id":"x","data":"` + strings.Repeat("x", size) + `"}`
	allocated := func(content string) uint64 {
		text, err := lines.Open("x.json", 2*size, true, func() io.Reader { return strings.NewReader(content) })
		must(t, err)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := io.Copy(io.Discard, text)
		must(t, errors.Join(err, text.Close()))
		if runtime.ReadMemStats(&after); n < size {
			t.Errorf("%d bytes", n)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	line := allocated(resource + "\n\n" + resource)
	entry := allocated(`{"resourceType":"Bundle","entry":[{"resource":` + resource + `},{"resource":` + resource + `}]}`)
	if entry > line+2*size { // a buffer that grows
		t.Errorf("%d bytes for entries, %d for lines", entry, line)
	}
}

// FuzzOpen: a document becomes lines of the same objects, and is broken where encoding/json refuses it.
func FuzzOpen(f *testing.F) {
	for _, seed := range []string{
		"", " \n", `"a":1 ` + "\n 2", `"a":tr ue`, `"a":- 1`, `"a":"a" "b"`, `"a" : [ 1 , 2 ] `, "\"a\":[[\n1 ], {} ,\"\\\"\"]", `"a":1,`, `"a":[`, `"a":{]`, `"a":"\`,
		`"a":[1 2]`, `1:2`, "\"a\":\"\n\"", `},{"a":1`, `}{`, `}]{"a": 1`, `}7{`, `"\u0000":"\u0000"`, `"a":1}`, `"a":1 true`, `"a":1"b"`, `"a"1`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, inside string) {
		content := "{\n" + inside + "\n}"
		if strings.Contains(inside, "undle") || strings.Contains(inside, "entry") || strings.Contains(inside, `\u`) {
			return // Bundles have other rules
		}
		var want []string
		dec := json.NewDecoder(strings.NewReader(content))
		var invalid error
		for invalid == nil {
			var object map[string]json.RawMessage
			if invalid = dec.Decode(&object); invalid == nil {
				text, err := json.Marshal(object)
				must(t, err)
				want = append(want, string(text))
			}
		}
		text, err := lines.Open("x.json", 1<<20, true, func() io.Reader { return strings.NewReader(content) })
		if (err == nil) != errors.Is(invalid, io.EOF) {
			if !strings.Contains(content, "[") || !json.Valid([]byte(content)) { // arrays of objects are documents, too
				t.Fatalf("%q: %v, want %v", content, err, invalid)
			}
			return
		}
		if err != nil {
			return
		}
		got, err := io.ReadAll(text)
		must(t, errors.Join(err, text.Close()))
		for i, line := range strings.Split(strings.TrimSuffix(string(got), "\n"), "\n") {
			var object map[string]json.RawMessage
			must(t, json.Unmarshal([]byte(line), &object))
			if text, err := json.Marshal(object); err != nil || string(text) != want[i] {
				t.Errorf("%q became %q", want[i], line)
			}
		}
	})
}

// FuzzRead: for every block size, Read returns the non-blank lines of bytes.Split with their numbers and offsets, and
// marks lines that are too long.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "a", "a\n", "a\nbc\n", "\n\n\r\na", "abcdefghij\nk\n", "a\nabcdefg\n", "\ufeffa\nb", " \ufeffa\n\t b \r\n",
		"a\nabcd", "a\nabcdefghijklmnop", "abcdefgh\nijklmnop\n", "\ufeffabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nb",
		"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nb",
	} {
		for _, size := range []byte{0, 1, 3, 7, 255} {
			f.Add([]byte(seed), size, byte(3))
			f.Add([]byte(seed), size, byte(255))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, size, most byte) {
		if bytes.ContainsAny(data, "{[\x1f") {
			return // it may be JSON or gzip
		}
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		contents := [][]byte{data, zipped.Bytes()}
		files := []lines.File{{Path: "x.ndjson", Size: 1}, {Path: "x.ndjson.gz", Size: 2}}
		r := lines.Reader{
			BlockSize: 1 + int(size), MaxLine: 1 + int(most), Takers: 3,
			Open: func(file int) (lines.Text, error) {
				return lines.Open(files[file].Path, 1000, false, func() io.Reader { return bytes.NewReader(contents[file]) })
			},
			Broken: func(_ int, err error) { t.Error(err) },
		}
		var mu sync.Mutex
		got := make([]map[int64]lines.Line, len(files))
		err := r.Read(t.Context(), files, func(_ context.Context, b *lines.Block) error {
			mu.Lock()
			defer mu.Unlock()
			for line := range b.Lines {
				if got[b.File] == nil {
					got[b.File] = map[int64]lines.Line{}
				}
				if _, twice := got[b.File][line.Number]; twice {
					t.Errorf("line %d was yielded twice", line.Number)
				}
				if !line.TooLong && !bytes.Equal(data[line.Offset:][:len(line.Body)], line.Body) {
					t.Errorf("line %d is not at %d", line.Number, line.Offset)
				}
				line.Body = bytes.Clone(line.Body)
				got[b.File][line.Number] = line
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for file := range files {
			count := 0
			for i, text := range bytes.Split(data, []byte{'\n'}) {
				body := bytes.Trim(bytes.TrimPrefix(text, []byte("\ufeff")), " \t\r")
				long := len(text) >= r.MaxLine
				line, came := got[file][int64(i+1)]
				if came != (long || len(body) > 0) || line.TooLong != long || !long && !bytes.Equal(line.Body, body) {
					t.Errorf("file %d, line %d: got %+v, want %q", file, i+1, line, text)
				}
				if came {
					count++
				}
			}
			if count != len(got[file]) {
				t.Errorf("file %d: %d lines, want %d", file, len(got[file]), count)
			}
		}
	})
}
