package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// allLevels grants every level to the subject "everything", and to "few" the data of one patient.
const allLevels = `
- {issuer: "urn:sluice:development", subject: everything, types: all, groups: all, patients: all, levels: [group, patient, system]}
- {issuer: "urn:sluice:development", subject: few, types: all, groups: all, patients: {only: [%q]}, levels: [group, patient, system]}
`

// ask kicks off by the method, with the body, and returns the manifest and the lines of its output.
func (s *stack) ask(subject, method, path, body string, header http.Header) (manifest, map[string][]string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, publicBase+path, strings.NewReader(body))
	check.Must(s.t, err)
	for name, values := range header {
		req.Header[name] = values
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	req.Header.Set("Authorization", "Bearer "+s.token(subject, "system/*.rs"))
	resp, err := s.client.Do(req)
	check.Must(s.t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("kick-off %s %s: %s %s", method, path, resp.Status, text)
	}
	status := resp.Header.Get("Content-Location")
	var m manifest
	check.Eventually(s.t, 2*time.Minute, "the export of "+path+" finishes", func() bool {
		resp := s.request(http.MethodGet, status, subject, nil)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false
		}
		check.Must(s.t, json.NewDecoder(resp.Body).Decode(&m))
		return true
	})
	return m, s.linesFor(subject, m.Output)
}

// get is ask by GET.
func (s *stack) get(path string) (manifest, map[string][]string) {
	s.t.Helper()
	return s.ask("everything", http.MethodGet, path, "", nil)
}

// whole returns every line of the population, and those of its groups.
func whole(p expect.Population) map[string][]string {
	lines := map[string][]string{"Group": p.GroupLines}
	for _, r := range p.ByKey {
		lines[r.Type] = append(lines[r.Type], r.Line)
	}
	return lines
}

// TestEveryLevel exports at each level, by both methods and with the parameters that limit an export, from PostgreSQL and
// from the folder.
func TestEveryLevel(t *testing.T) {
	t.Parallel()
	data := generated(t, 24)
	p := expect.Read(t, data)
	var people []string
	for _, r := range p.ByKey {
		if r.Type == "Patient" {
			people = append(people, r.ID)
		}
	}
	slices.Sort(people)
	set := func(ids ...string) map[string]bool {
		those := map[string]bool{}
		for _, id := range ids {
			those[id] = true
		}
		return those
	}
	for name, with := range map[string]setup{
		"postgres": {data: data, database: loaded(t, data), workers: 2},
		"folder":   {data: data, workers: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with.access = fmt.Sprintf(allLevels, people[0])
			s := deploy(t, with)
			_, got := s.get("/$export")
			expect.SameLines(t, "system", got, whole(p))
			_, got = s.get("/Patient/$export")
			expect.SameLines(t, "patient", got, p.Export(set(people...)))
			_, got = s.ask("few", http.MethodGet, "/Patient/$export", "", nil)
			expect.SameLines(t, "patient, of one", got, p.Export(set(people[0])))
			_, got = s.ask("few", http.MethodGet, "/$export", "", nil)
			for _, line := range slices.Concat(got["Patient"], got["Observation"], got["Encounter"]) {
				if !strings.Contains(line, people[0]) {
					t.Errorf("the system level shows a line of somebody else")
				}
			}
			if len(got["Organization"]) != len(whole(p)["Organization"]) || len(got["Group"]) > 0 {
				t.Errorf("the system level of one patient has %d organizations, %d groups", len(got["Organization"]), len(got["Group"]))
			}

			body := fmt.Sprintf(`{"resourceType":"Parameters","parameter":[
				{"name":"patient","valueReference":{"reference":"Patient/%s"}},
				{"name":"patient","valueReference":{"reference":"Patient/%s"}}]}`, people[0], people[1])
			_, got = s.ask("everything", http.MethodPost, "/Patient/$export", body, nil)
			expect.SameLines(t, "two patients", got, p.Export(set(people[:2]...)))
			_, got = s.ask("everything", http.MethodPost, "/Group/all/$export", body, nil)
			expect.SameLines(t, "two members", got, p.Export(set(people[:2]...)))

			want := map[string][]string{"Practitioner": p.Export(set(people...))["Practitioner"]}
			_, got = s.get("/Group/all/$export?_type=Practitioner")
			expect.SameLines(t, "only practitioners", got, want)

			want = map[string][]string{}
			for _, line := range p.Export(set(people...))["Patient"] {
				if strings.Contains(line, `"gender":"female"`) {
					want["Patient"] = append(want["Patient"], line)
				}
			}
			_, got = s.get("/Group/all/$export?_type=Patient&_typeFilter=" + url.QueryEscape("Patient?gender=female"))
			expect.SameLines(t, "women", got, want)

			_, got = s.get("/Group/all/$export?_type=Patient&_elements=id")
			if n := len(got["Patient"]); n != len(people) {
				t.Errorf("_elements: %d patients, want %d", n, len(people))
			}
			for _, line := range got["Patient"] {
				if !strings.Contains(line, `"SUBSETTED"`) || strings.Contains(line, "birthDate") {
					t.Errorf("_elements: %s", line)
				}
			}

			m, _ := s.ask("everything", http.MethodGet, "/Group/all/$export?_type=Patient&_nonsense=1", "",
				http.Header{"Prefer": {"respond-async, handling=lenient"}})
			if told := strings.Join(s.lines(m.Error)["OperationOutcome"], ""); !strings.Contains(told, "_nonsense") {
				t.Errorf("what was ignored is not told: %s", told)
			}
		})
	}
}
