package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// mirror is a client that follows one level by incremental exports, and applies them to its copy: lines by Type/id.
type mirror struct {
	path   string // of the operation
	header http.Header
	until  bool
	last   string // transactionTime of the last export
	copied map[string]string
}

// follow exports what changed since the last export and applies it.
func (m *mirror) follow(s *stack) {
	s.t.Helper()
	query := url.Values{}
	if m.last != "" {
		query.Set("_since", m.last)
	}
	if m.until {
		query.Set("_until", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}
	answer, lines := s.ask("everything", http.MethodGet, m.path+"?"+query.Encode(), "", m.header)
	m.last = answer.TransactionTime
	gone := map[string]bool{}
	for _, line := range s.lines(answer.Deleted)["Bundle"] {
		var bundle struct {
			Entry []struct{ Request struct{ Method, URL string } }
		}
		check.Must(s.t, json.Unmarshal([]byte(line), &bundle))
		for _, entry := range bundle.Entry {
			gone[entry.Request.URL] = true
			delete(m.copied, entry.Request.URL)
		}
	}
	for typ, list := range lines {
		for _, line := range list {
			name := typ + "/" + idOf(s.t, line)
			if gone[name] {
				s.t.Errorf("%s: %s is exported and deleted", m.path, name)
			}
			m.copied[name] = line
		}
	}
}

func idOf(t *testing.T, line string) string {
	t.Helper()
	var r struct{ ID string }
	check.Must(t, json.Unmarshal([]byte(line), &r))
	return r.ID
}

// clinic is a random store: resources by Type/id, and the members of one group.
type clinic struct {
	random  *rand.Rand
	held    map[string]string
	members map[string]bool
	left    map[string]bool // ever
	serial  int
}

// change makes one random change and returns its lines for a load.
func (c *clinic) change() string {
	c.serial++
	pick := func(prefix string, n int) string { return prefix + strconv.Itoa(c.random.IntN(n)) }
	meta := fmt.Sprintf(`"meta":{"versionId":"%d","lastUpdated":%q}`, c.serial, time.Now().UTC().Format(time.RFC3339Nano))
	put := func(typ, id, more string) string {
		line := fmt.Sprintf(`{"resourceType":%q,"id":%q,%s%s}`, typ, id, meta, more)
		c.held[typ+"/"+id] = line
		return line
	}
	drop := func(typ, id string) string {
		if c.held[typ+"/"+id] == "" {
			return ""
		}
		delete(c.held, typ+"/"+id)
		return fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"%s/%s"}}]}`,
			typ, id)
	}
	person := pick("p", 5)
	// What travels along: an Observation mentions a Practitioner or a role, a role both others, each a part of another.
	referenced := func() string {
		return []string{pick("Practitioner/d", 3), pick("PractitionerRole/r", 3), pick("Organization/c", 3)}[c.random.IntN(3)]
	}
	switch c.random.IntN(18) {
	case 0, 1, 2, 3:
		return put("Observation", pick("o", 12), fmt.Sprintf(
			`,"status":"final","code":{"text":"x"},"subject":{"reference":"Patient/%s"},"performer":[{"reference":%q}]`,
			person, referenced()))
	case 12, 13:
		return put("PractitionerRole", pick("r", 3), fmt.Sprintf(
			`,"practitioner":{"reference":"Practitioner/%s"},"organization":{"reference":"Organization/%s"}`, pick("d", 3), pick("c", 3)))
	case 14:
		return put("Organization", pick("c", 3), fmt.Sprintf(`,"partOf":{"reference":"Organization/%s"}`, pick("c", 3)))
	case 15, 16: // a load reports a Provenance without its target
		target := pick("c", 3)
		if c.held["Organization/"+target] == "" {
			return put("Organization", target, "")
		}
		return put("Provenance", pick("v", 3), fmt.Sprintf(
			`,"target":[{"reference":"Organization/%s"}],"recorded":"2026-01-01T00:00:00Z","agent":[{"who":{"reference":%q}}]`,
			target, referenced()))
	case 17:
		return drop("PractitionerRole", pick("r", 3))
	case 4:
		return drop("Observation", pick("o", 12))
	case 5, 6:
		return put("Patient", person, "")
	case 7:
		return put("Practitioner", pick("d", 3), "")
	case 8:
		return drop([]string{"Practitioner", "Patient"}[c.random.IntN(2)], []string{pick("d", 3), person}[c.random.IntN(2)])
	case 9:
		return put("Location", pick("l", 3), "")
	case 10:
		c.members[person] = true
	case 11:
		if c.members[person] {
			delete(c.members, person)
			c.left[person] = true
		}
	}
	return ""
}

// group returns the line of the group.
func (c *clinic) group() string {
	c.serial++
	var members []string
	for id := range c.members {
		members = append(members, fmt.Sprintf(`{"entity":{"reference":"Patient/%s"}}`, id))
	}
	slices.Sort(members)
	return fmt.Sprintf(`{"resourceType":"Group","id":"g","meta":{"versionId":"%d"},"type":"person","actual":true,"active":true,"member":[%s]}`,
		c.serial, strings.Join(members, ","))
}

// TestChainsOfIncrementalExports changes a store at random beside chains of incremental exports, at each level and in both
// dialects: a client's copy is then what a whole export returns (spec 9). It may keep what only those who left the group, or
// who are no patients any more, were about, and what nothing references any more. SLUICE_TEST_SEEDS=n runs n histories.
func TestChainsOfIncrementalExports(t *testing.T) {
	t.Parallel()
	for seed := range testenv.Seeds(t, 1) {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			chains(t, uint64(seed))
		})
	}
}

func chains(t *testing.T, seed uint64) {
	c := &clinic{
		random: rand.New(rand.NewPCG(seed, 14)), held: map[string]string{}, members: map[string]bool{"p0": true}, left: map[string]bool{},
	}
	dir := t.TempDir()
	write := func(changes int) string {
		lines := []string{}
		for range changes {
			if line := c.change(); line != "" {
				lines = append(lines, line)
			}
		}
		lines = append(lines, c.group())
		file := filepath.Join(dir, strconv.Itoa(c.serial), "changes.ndjson")
		check.Must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		check.Must(t, os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
		return filepath.Dir(file)
	}
	store := loaded(t, write(40))
	s := deploy(t, setup{database: store, directory: store, workers: 1, access: fmt.Sprintf(allLevels, "p0")})
	var mirrors []*mirror
	for _, path := range []string{"/Group/g/$export", "/Patient/$export", "/$export"} {
		ig := http.Header{"Prefer": {"respond-async"}}
		mirrors = append(mirrors, &mirror{path: path, header: ig, copied: map[string]string{}},
			&mirror{path: path, copied: map[string]string{}}, &mirror{path: path, header: ig, until: true, copied: map[string]string{}})
	}
	for range 3 {
		for _, m := range mirrors {
			m.follow(s)
		}
		// The classic transactionTime is the end of an export: the changes are of that second, too.
		sluice(t, 0, "load", "--database", store, write(1+c.random.IntN(12)))
	}
	for _, m := range mirrors {
		m.follow(s)
		whole := &mirror{path: m.path, header: m.header, copied: map[string]string{}}
		whole.follow(s)
		c.compare(t, seed, m, whole.copied)
	}
}

// compare compares a copy with a whole export.
func (c *clinic) compare(t *testing.T, seed uint64, m *mirror, whole map[string]string) {
	t.Helper()
	for name, line := range whole {
		if name != "Group/g" && m.copied[name] != line {
			t.Errorf("seed %d, %s, %v: the copy has %q of %s, a whole export %q", seed, m.path, m.header, m.copied[name], name, line)
		}
	}
	for name, line := range m.copied {
		if _, there := whole[name]; there {
			continue
		}
		about := ""
		if _, rest, found := strings.Cut(line, `"subject":{"reference":"Patient/`); found {
			about, _, _ = strings.Cut(rest, `"`)
		} else if id, is := strings.CutPrefix(name, "Patient/"); is {
			about = id
		}
		typ, _, _ := strings.Cut(name, "/")
		group, system := strings.HasPrefix(m.path, "/Group"), m.path == "/$export"
		switch {
		case group && about != "" && !c.members[about]: // left
		case !group && !system && about != "" && c.held["Patient/"+about] == "" && c.held[name] != "": // no patient any more
		case !system && slices.Contains([]string{"Practitioner", "PractitionerRole", "Organization", "Provenance"}, typ):
			// nothing references it, or its target is gone
		default:
			t.Errorf("seed %d, %s, %v: the copy still has %s: %s", seed, m.path, m.header, name, line)
		}
	}
}
