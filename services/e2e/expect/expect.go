// Package expect computes the expected content of an export from the data, in the simplest way: whole resources in a map,
// references found by their form. It shares no code with the product.
package expect

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// Resource is a resource of a population.
type Resource struct {
	Type, ID string
	Line     string

	references []string // all
	about      []string // those of the element for its subject
}

// Population is the content of a folder of NDJSON.
type Population struct {
	ByKey  map[string]*Resource // by type and id, such as Patient/1, without groups
	Groups map[string]map[string]any

	GroupLines []string
}

// Read reads all files of a folder.
func Read(t *testing.T, dir string) Population {
	t.Helper()
	p, err := Load(dir)
	check.Must(t, err)
	return p
}

// Load reads all files of a folder, without a test.
func Load(dir string) (Population, error) {
	p := Population{ByKey: map[string]*Resource{}, Groups: map[string]map[string]any{}}
	var urns []*Resource
	byID := map[string][]string{}
	err := eachLine(dir, func(_ string, line []byte) error {
		r, err := parse(string(line))
		if err != nil {
			return err
		}
		if r.Type == "Group" {
			var group map[string]any
			err := json.Unmarshal(line, &group)
			p.Groups[r.ID] = group
			p.GroupLines = append(p.GroupLines, r.Line)
			return err
		}
		key := r.Type + "/" + r.ID
		if p.ByKey[key] == nil {
			byID[r.ID] = append(byID[r.ID], key)
		}
		p.ByKey[key] = r
		if strings.Contains(r.Line, `"urn:uuid:`) {
			urns = append(urns, r)
		}
		return nil
	})
	if err != nil {
		return Population{}, err
	}
	// References by urn become those to the one resource with the id (spec 10).
	urn := regexp.MustCompile(`"reference":"urn:uuid:([^"]+)"`)
	for _, r := range urns {
		resolved, err := parse(urn.ReplaceAllStringFunc(r.Line, func(reference string) string {
			if keys := byID[urn.FindStringSubmatch(reference)[1]]; len(keys) == 1 {
				return `"reference":"` + keys[0] + `"`
			}
			return reference
		}))
		if err != nil {
			return Population{}, err
		}
		*r = *resolved
	}
	return p, nil
}

// eachLine calls do with each line of the NDJSON files of a folder, and the name of its file up to the first dot.
func eachLine(dir string, do func(file string, line []byte) error) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson*"))
	if err != nil {
		return err
	}
	for _, name := range files {
		base, _, _ := strings.Cut(filepath.Base(name), ".")
		if err := linesOf(name, func(line []byte) error { return do(base, line) }); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

func linesOf(name string, do func(line []byte) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	var reader io.Reader = file
	if strings.HasSuffix(name, ".gz") {
		if reader, err = gzip.NewReader(file); err != nil {
			return err
		}
	}
	lines := bufio.NewScanner(reader)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if err := do(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}

var reference = regexp.MustCompile(`"reference"\s*:\s*"([^"\\]*)"`)

// parse returns the resource of a line. It keeps no tree, which needs much memory.
func parse(line string) (*Resource, error) {
	r := &Resource{Line: line}
	var elements map[string]json.RawMessage
	if err := json.Unmarshal([]byte(line), &elements); err != nil {
		return nil, err
	}
	err := errors.Join(json.Unmarshal(elements["resourceType"], &r.Type), json.Unmarshal(elements["id"], &r.ID))
	if err != nil {
		return nil, err
	}
	for _, found := range reference.FindAllStringSubmatch(line, -1) {
		r.references = append(r.references, found[1])
	}
	element := subjectElements[r.Type]
	if element == "" {
		element = "subject"
	}
	names := strings.Split(element, ".")
	var at any
	if content := elements[names[0]]; content != nil {
		if err := json.Unmarshal(content, &at); err != nil {
			return nil, err
		}
	}
	for _, name := range names[1:] {
		at = descend(at, name)
	}
	r.about = references(at)
	return r, nil
}

var travelling = []string{"Practitioner", "PractitionerRole", "Organization", "Location", "Medication"}

// subjectElements names the element of each type that refers to its patient.
var subjectElements = map[string]string{
	"AllergyIntolerance": "patient", "Claim": "patient", "ExplanationOfBenefit": "patient", "Immunization": "patient",
	"Device": "patient", "RelatedPerson": "patient", "Coverage": "beneficiary", "Appointment": "participant.actor",
	"Provenance": "target",
}

func (p Population) subjects(r *Resource) []string {
	if r.Type == "Patient" {
		return []string{r.ID}
	}
	var people []string
	for _, ref := range r.about {
		if id, ok := strings.CutPrefix(ref, "Patient/"); ok {
			people = append(people, id)
		} else if target := p.ByKey[ref]; r.Type == "Provenance" && target != nil && target.Type != "Provenance" &&
			!slices.Contains(travelling, target.Type) {
			people = append(people, p.subjects(target)...)
		}
	}
	return people
}

func descend(at any, name string) any {
	switch v := at.(type) {
	case map[string]any:
		return v[name]
	case []any:
		var all []any
		for _, item := range v {
			all = append(all, descend(item, name))
		}
		return all
	}
	return nil
}

// references returns every literal reference below the value.
func references(at any) []string {
	var found []string
	switch v := at.(type) {
	case map[string]any:
		for name, value := range v {
			if text, ok := value.(string); ok && name == "reference" {
				found = append(found, text)
			} else {
				found = append(found, references(value)...)
			}
		}
	case []any:
		for _, item := range v {
			found = append(found, references(item)...)
		}
	}
	return found
}

// Members returns the group's active patients.
func (p Population) Members(group string) map[string]bool {
	people := map[string]bool{}
	list, _ := p.Groups[group]["member"].([]any)
	for _, item := range list {
		member, _ := item.(map[string]any)
		if inactive, _ := member["inactive"].(bool); inactive {
			continue
		}
		period, _ := member["period"].(map[string]any)
		if start, _ := period["start"].(string); period["end"] != nil || start > "2900" {
			continue // in the test data, periods that end have ended, and some begin in 2999
		}
		for _, ref := range references(member["entity"]) {
			if id, ok := strings.CutPrefix(ref, "Patient/"); ok {
				people[id] = true
			}
		}
	}
	return people
}

// Export returns the lines that an export of everything for these patients has to hold, by type.
func (p Population) Export(people map[string]bool) map[string][]string {
	lines := map[string][]string{}
	reached := map[string]bool{}
	var queue []*Resource
	take := func(r *Resource) {
		lines[r.Type] = append(lines[r.Type], r.Line)
		queue = append(queue, r)
	}
	for _, r := range p.ByKey {
		if slices.Contains(travelling, r.Type) {
			continue
		}
		subjects := p.subjects(r)
		inside := len(subjects) > 0
		for _, subject := range subjects {
			inside = inside && people[subject]
		}
		if inside {
			take(r)
		}
	}
	about := map[string]bool{} // Provenance that is only about referenced resources
	for grown := true; grown; {
		for len(queue) > 0 {
			r := queue[0]
			queue = queue[1:]
			for _, ref := range r.references {
				target := p.ByKey[ref]
				if target != nil && slices.Contains(travelling, target.Type) && !reached[ref] {
					reached[ref] = true
					take(target)
				}
			}
		}
		grown = false
		for key, r := range p.ByKey {
			if r.Type == "Provenance" && !about[key] && len(p.subjects(r)) == 0 &&
				slices.ContainsFunc(r.about, func(ref string) bool { return reached[ref] }) {
				about[key], grown = true, true
				take(r)
			}
		}
	}
	return lines
}

// SameLines compares two exports as sets of lines, by type. No line may come twice.
func SameLines(t *testing.T, what string, got, want map[string][]string) {
	t.Helper()
	for typ := range want {
		if len(got[typ]) == 0 {
			t.Errorf("%s: %s is missing, want %d", what, typ, len(want[typ]))
		}
	}
	for typ := range got {
		a, b := slices.Sorted(slices.Values(got[typ])), slices.Sorted(slices.Values(want[typ]))
		if !slices.Equal(a, b) {
			t.Errorf("%s: %s has %d lines (%d different ones), want %d", what, typ, len(a), len(slices.Compact(a)), len(b))
		}
	}
}

// Identities fails for a duplicate id and for a line about a patient outside the group (pitfall 2).
func (p Population) Identities(t *testing.T, people map[string]bool, got map[string][]string) {
	t.Helper()
	seen := map[string]bool{}
	for typ, lines := range got {
		for _, line := range lines {
			r, err := parse(line)
			check.Must(t, err)
			if r.Type != typ || seen[r.Type+"/"+r.ID] {
				t.Fatalf("%s: a line of type %s, or an id twice", typ, r.Type)
			}
			seen[r.Type+"/"+r.ID] = true
			if slices.Contains(travelling, typ) {
				continue
			}
			for _, subject := range p.subjects(r) {
				if !people[subject] {
					t.Fatalf("%s: a resource of a foreign patient", typ)
				}
			}
		}
	}
}

// Fingerprint identifies a set of lines in any order: their number and the sum of their hashes.
type Fingerprint struct {
	Count     int
	low, high uint64
}

// Add adds a line.
func (f *Fingerprint) Add(line []byte) {
	hash := xxh3.Hash128(bytes.TrimSuffix(line, []byte{'\n'}))
	f.Count, f.low, f.high = f.Count+1, f.low+hash.Lo, f.high+hash.Hi
}

// Fingerprints returns the fingerprint of each type.
func Fingerprints(lines map[string][]string) map[string]Fingerprint {
	byType := map[string]Fingerprint{}
	for typ, all := range lines {
		var sum Fingerprint
		for _, line := range all {
			sum.Add([]byte(line))
		}
		byType[typ] = sum
	}
	return byType
}

// Folder returns the fingerprint of each type in the folder of a client, whose files are Patient.ndjson and so on.
func Folder(t *testing.T, dir string) map[string]Fingerprint {
	t.Helper()
	byType, err := LoadFolder(dir)
	check.Must(t, err)
	return byType
}

// LoadFolder is Folder without a test.
func LoadFolder(dir string) (map[string]Fingerprint, error) {
	byType := map[string]Fingerprint{}
	err := eachLine(dir, func(typ string, line []byte) error {
		sum := byType[typ]
		sum.Add(line)
		byType[typ] = sum
		return nil
	})
	return byType, err
}
