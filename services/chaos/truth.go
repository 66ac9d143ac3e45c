package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// question is a request whose answer is known.
type question struct {
	name    string
	clients []string // who may ask it
	request bulkclient.Request
	keys    []string // of the resources in the answer, such as Patient/1
}

// truth is what each export must return. Loads replace resources by newer versions, so the data has generations; what is in
// an export is the same in each of them.
type truth struct {
	questions []*question

	mu      sync.Mutex
	held    map[string][]edition // by key, the oldest first
	newest  int                  // generation that was written
	last    int                  // the newest generation that is surely loaded; newest may be
	answers map[string]fingerprints
}

// edition is a line from a generation on.
type edition struct {
	since int
	line  string
}

type fingerprints map[string]expect.Fingerprint // by type

// learn computes the answers from the files, without the product's code. It returns the patients of the client "few".
func learn(dir string) (t *truth, few []string, err error) {
	population, err := expect.Load(dir)
	if err != nil {
		return nil, nil, err
	}
	first := map[string]string{}
	keyOf := map[string]string{}
	var people []string
	for key, r := range population.ByKey {
		first[key], keyOf[r.Line] = r.Line, key
		if r.Type == "Patient" {
			people = append(people, r.ID)
		}
	}
	var groupKeys []string
	for i, line := range population.GroupLines {
		key := fmt.Sprintf("Group/%d", i)
		first[key] = line
		groupKeys = append(groupKeys, key)
	}
	slices.Sort(people)
	t = &truth{held: map[string][]edition{}, answers: map[string]fingerprints{}}
	for key, line := range first {
		t.held[key] = []edition{{0, line}}
	}
	about := func(those ...string) (keys []string) {
		set := map[string]bool{}
		for _, id := range those {
			set[id] = true
		}
		for _, lines := range population.Export(set) {
			for _, line := range lines {
				keys = append(keys, keyOf[line])
			}
		}
		return keys
	}
	members := func(group string) []string { return slices.Collect(maps.Keys(population.Members(group))) }
	some := func(keys []string, types ...string) (kept []string) {
		for _, key := range keys {
			if typ, _, _ := strings.Cut(key, "/"); slices.Contains(types, typ) {
				kept = append(kept, key)
			}
		}
		return kept
	}
	few = people[:5]
	all, ten, apps := about(people...), about(members("ten")...), []string{"app-1", "app-2", "app-3"}
	everything := append(slices.Collect(maps.Keys(population.ByKey)), groupKeys...)
	women := containing(first, some(all, "Patient"), `"gender":"female"`)
	add := func(name string, clients []string, request bulkclient.Request, keys []string) {
		t.questions = append(t.questions, &question{name, clients, request, keys})
	}
	add("group", apps, bulkclient.Request{Group: "all"}, about(members("all")...))
	types := []string{"Patient", "Encounter"}
	add("types", apps, bulkclient.Request{Group: "all", Types: types}, some(all, types...))
	add("filter", apps, bulkclient.Request{
		Group: "all", Types: []string{"Patient"}, TypeFilters: []string{"Patient?gender=female"},
	}, women)
	add("patient", apps, bulkclient.Request{Level: export.PatientLevel}, all)
	add("system", apps, bulkclient.Request{Level: export.SystemLevel}, everything)
	add("two", apps, bulkclient.Request{Level: export.PatientLevel, Patients: people[5:7], Post: true}, about(people[5:7]...))
	add("few", []string{"few"}, bulkclient.Request{Level: export.PatientLevel}, about(few...))
	add("ten", []string{"ten"}, bulkclient.Request{Group: "ten"}, ten)
	add("probe", []string{"probe"}, bulkclient.Request{Group: "ten", Types: []string{"Patient"}}, some(ten, "Patient"))
	return t, few, nil
}

func containing(lines map[string]string, keys []string, text string) (kept []string) {
	for _, key := range keys {
		if strings.Contains(lines[key], text) {
			kept = append(kept, key)
		}
	}
	return kept
}

// of returns the questions that the client may ask.
func (t *truth) of(client string) (those []*question) {
	for _, q := range t.questions {
		if slices.Contains(q.clients, client) {
			those = append(those, q)
		}
	}
	return those
}

// answer returns what the question has to return in a generation.
func (t *truth) answer(q *question, generation int) fingerprints {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := fmt.Sprint(q.name, " ", generation)
	if known, there := t.answers[name]; there {
		return known
	}
	answer := fingerprints{}
	for _, key := range q.keys {
		typ, _, _ := strings.Cut(key, "/")
		sum := answer[typ]
		sum.Add([]byte(t.line(key, generation)))
		answer[typ] = sum
	}
	t.answers[name] = answer
	return answer
}

func (t *truth) line(key string, generation int) (line string) {
	for _, each := range t.held[key] {
		if each.since <= generation {
			line = each.line
		}
	}
	return line
}

// between returns the generations that an export from the first one on may have.
func (t *truth) between(first int) (generations []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for generation := first; generation <= t.newest; generation++ {
		generations = append(generations, generation)
	}
	return generations
}

// now returns the newest generation that is surely loaded.
func (t *truth) now() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

var version = regexp.MustCompile(`"meta":\{"versionId":"\d+","lastUpdated":"[^"]*"`)

// change makes the next generation: new versions of some resources, which it writes into the folder. loaded has to be
// called when they are surely loaded.
func (t *truth) change(choose *rand.Rand, dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.newest++
	keys := slices.Sorted(maps.Keys(t.held))
	keys = slices.DeleteFunc(keys, func(key string) bool { return strings.HasPrefix(key, "Group/") })
	var file strings.Builder
	for range 1 + choose.IntN(40) {
		key := keys[choose.IntN(len(keys))]
		line := version.ReplaceAllString(t.line(key, t.newest), fmt.Sprintf(`"meta":{"versionId":"%d","lastUpdated":%q`,
			t.newest+1, time.Now().UTC().Format(time.RFC3339)))
		t.held[key] = append(t.held[key], edition{t.newest, line})
		file.WriteString(line + "\n")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.ndjson", t.newest)), []byte(file.String()), 0o600)
}

// loaded notes that the newest generation is loaded.
func (t *truth) loaded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = t.newest
}
