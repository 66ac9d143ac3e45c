package e2e

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// This file computes the expected content of an export from the data, in the simplest way: whole resources in maps,
// references found by a walk over the tree. It shares no code with the product.

type resource struct {
	typ, id string
	line    string
	tree    map[string]any
}

type population struct {
	byKey  map[string]*resource
	groups map[string]*resource
}

func readPopulation(t *testing.T, dir string) population {
	t.Helper()
	p := population{byKey: map[string]*resource{}, groups: map[string]*resource{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson*"))
	must(t, err)
	for _, name := range files {
		file, err := os.Open(name)
		must(t, err)
		var reader io.Reader = file
		if strings.HasSuffix(name, ".gz") {
			reader, err = gzip.NewReader(file)
			must(t, err)
		}
		lines := bufio.NewScanner(reader)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			r := &resource{line: lines.Text()}
			must(t, json.Unmarshal(lines.Bytes(), &r.tree))
			r.typ, _ = r.tree["resourceType"].(string)
			r.id, _ = r.tree["id"].(string)
			if r.typ == "Group" {
				p.groups[r.id] = r
			} else {
				p.byKey[r.typ+"/"+r.id] = r
			}
		}
		must(t, lines.Err())
		must(t, file.Close())
	}
	p.resolve(t)
	return p
}

// resolve rewrites references by urn to the one resource with the id (spec 10).
func (p population) resolve(t *testing.T) {
	t.Helper()
	urn := regexp.MustCompile(`"reference":"urn:uuid:([^"]+)"`)
	byID := map[string][]string{}
	for key, r := range p.byKey {
		byID[r.id] = append(byID[r.id], key)
	}
	for _, r := range p.byKey {
		r.line = urn.ReplaceAllStringFunc(r.line, func(reference string) string {
			if keys := byID[urn.FindStringSubmatch(reference)[1]]; len(keys) == 1 {
				return `"reference":"` + keys[0] + `"`
			}
			return reference
		})
		r.tree = nil
		must(t, json.Unmarshal([]byte(r.line), &r.tree))
	}
}

var travelling = []string{"Practitioner", "PractitionerRole", "Organization", "Location", "Medication"}

// subjectElements names the element of each type that refers to its patient.
var subjectElements = map[string]string{
	"AllergyIntolerance": "patient", "Claim": "patient", "ExplanationOfBenefit": "patient", "Immunization": "patient",
	"Device": "patient", "RelatedPerson": "patient", "Coverage": "beneficiary", "Appointment": "participant.actor",
}

func (p population) subjects(r *resource) []string {
	switch r.typ {
	case "Patient":
		return []string{r.id}
	case "Provenance":
		var people []string
		for _, ref := range references(r.tree["target"]) {
			if strings.HasPrefix(ref, "Patient/") {
				people = append(people, strings.TrimPrefix(ref, "Patient/"))
			} else if target := p.byKey[ref]; target != nil && target.typ != "Provenance" && !slices.Contains(travelling, target.typ) {
				people = append(people, p.subjects(target)...)
			}
		}
		return people
	}
	element := subjectElements[r.typ]
	if element == "" {
		element = "subject"
	}
	var at any = r.tree
	for _, name := range strings.Split(element, ".") {
		at = descend(at, name)
	}
	var people []string
	for _, ref := range references(at) {
		if strings.HasPrefix(ref, "Patient/") {
			people = append(people, strings.TrimPrefix(ref, "Patient/"))
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

// members returns the group's active patients.
func (p population) members(group string) map[string]bool {
	people := map[string]bool{}
	list, _ := p.groups[group].tree["member"].([]any)
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

// export returns the lines that an export of everything for these patients has to hold, by type.
func (p population) export(people map[string]bool) map[string][]string {
	lines := map[string][]string{}
	reached := map[string]bool{}
	var queue []*resource
	take := func(r *resource) {
		lines[r.typ] = append(lines[r.typ], r.line)
		queue = append(queue, r)
	}
	for _, r := range p.byKey {
		if slices.Contains(travelling, r.typ) {
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
			for _, ref := range references(r.tree) {
				target := p.byKey[ref]
				if target != nil && slices.Contains(travelling, target.typ) && !reached[ref] {
					reached[ref] = true
					take(target)
				}
			}
		}
		grown = false
		for key, r := range p.byKey {
			if r.typ == "Provenance" && !about[key] && len(p.subjects(r)) == 0 &&
				slices.ContainsFunc(references(r.tree["target"]), func(ref string) bool { return reached[ref] }) {
				about[key], grown = true, true
				take(r)
			}
		}
	}
	return lines
}

// sameLines compares two exports as sets of lines, by type. No line may come twice.
func sameLines(t *testing.T, what string, got, want map[string][]string) {
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
