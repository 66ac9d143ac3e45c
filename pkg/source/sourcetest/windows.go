package sourcetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// OpenHistory returns an empty source that keeps all history, and a function that loads lines, also entries that delete.
type OpenHistory func(t *testing.T) (source.Source, func(lines ...string))

// Windows compares windows of random histories with a model that looks at every version.
func Windows(t *testing.T, seeds int, open OpenHistory) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			src, load := open(t)
			h := &histories{random: rand.New(rand.NewPCG(seed, 9)), src: src}
			for range 6 {
				load(h.change()...)
				at, err := src.Snapshot(t.Context(), time.Now())
				must(t, err)
				h.instants = append(h.instants, at)
			}
			for after := range h.instants {
				for asOf := after; asOf < len(h.instants); asOf++ {
					h.check(t, after, asOf)
				}
			}
		})
	}
}

// refusedVersion is a line that was cut: only whose version it is can be read.
func refusedVersion(typ, id string, version int) string {
	return strings.TrimSuffix(resource(typ, id, fmt.Sprintf(`"meta":{"versionId":"%d"}`, version)), "}")
}

// Refusals checks that a version that is refused deletes the older one, until a later one can be read.
func Refusals(t *testing.T, open OpenHistory) {
	src, load := open(t)
	h := &histories{src: src}
	version := func(typ, id string, version int, patient string) string {
		return resource(typ, id, fmt.Sprintf(`"meta":{"versionId":"%d"}`, version), ref("subject", "Patient/"+patient))
	}
	load(resource("Patient", "a", `"meta":{"versionId":"1"}`), resource("Patient", "b"),
		version("Observation", "1", 1, "a"), version("Observation", "2", 2, "a"), version("Observation", "3", 1, "b"),
		resource("Provenance", "1", `"meta":{"versionId":"1"}`, targets("Observation/3")), version("List", "1", 1, "a"))
	first, err := src.Snapshot(t.Context(), time.Now())
	must(t, err)
	deleted := func(typ string, want ...string) {
		t.Helper()
		now, err := src.Snapshot(t.Context(), time.Now())
		must(t, err)
		h.instants = []time.Time{now.Add(time.Hour)} // all are before the only load
		for _, q := range []source.DeletedQuery{
			{}, {Patients: []string{"a", "b"}}, {From: "a", To: "c"},
		} {
			q.Type, q.AsOf, q.Window = typ, now, source.Window{After: first}
			same(t, fmt.Sprintf("deleted %s, %+v", typ, q), h.deleted(t, q), want)
		}
	}
	load(refusedVersion("Observation", "1", 2), refusedVersion("Observation", "2", 1), refusedVersion("Provenance", "1", 2),
		refusedVersion("Patient", "a", 2))
	deleted("Observation", "1[a] false [] 0")
	deleted("Provenance", "1[b] false [] 0")
	deleted("Patient", "a[a] false [] 0")
	deleted("List")
	load(version("Observation", "1", 3, "a"), resource("Patient", "a", `"meta":{"versionId":"3"}`))
	deleted("Observation")
	deleted("Patient")
	load(refusedVersion("Observation", "1", 4))
	load(version("Observation", "1", 5, "b"))
	deleted("Observation", "1[a] true [b] 0")
}

// histories is a random history, and the model of it.
type histories struct {
	random   *rand.Rand
	src      source.Source
	serial   int
	instants []time.Time // of the loads
	versions []*modelVersion
}

// modelVersion is one version of a resource. Loads are numbered as the instants.
type modelVersion struct {
	typ, id, body string
	updated       time.Time // zero for none
	subjects      []string
	targets       []string // ids of Observations
	born, ended   int      // ended: never for a current version
}

const never = 1 << 30

func (v *modelVersion) visible(at int) bool { return v.born <= at && v.ended > at }

func (h *histories) at(typ, id string, load int) *modelVersion {
	for _, v := range h.versions {
		if v.typ == typ && v.id == id && v.visible(load) {
			return v
		}
	}
	return nil
}

// day returns an instant that no two days share.
func day(n int) time.Time { return time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC) }

// pick returns one of six ids.
func (h *histories) pick(prefix string) string { return fmt.Sprint(prefix, h.random.IntN(6)) }

// change makes one load: its lines, in any order of types.
func (h *histories) change() (lines []string) {
	load := len(h.instants)
	touched := map[string]bool{}
	for range 5 + h.random.IntN(20) {
		typ := []string{"Patient", "Observation", "Observation", "Appointment", "Questionnaire", "Provenance"}[h.random.IntN(6)]
		v := &modelVersion{typ: typ, id: h.pick(strings.ToLower(typ[:2])), born: load, ended: never}
		if touched[typ+v.id] {
			continue
		}
		touched[typ+v.id] = true
		if h.random.IntN(4) == 0 {
			if old := h.at(typ, v.id, load); old != nil {
				old.ended = load
			}
			lines = append(lines, fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":`+
				`{"method":"DELETE","url":"%s/%s"}}]}`, typ, v.id))
			continue
		}
		h.serial++
		if h.random.IntN(8) == 0 { // a version that is refused takes the older one away
			if old := h.at(typ, v.id, load); old != nil {
				old.ended = load
			}
			lines = append(lines, refusedVersion(typ, v.id, h.serial))
			continue
		}
		meta := fmt.Sprintf(`"meta":{"versionId":"%d"}`, h.serial)
		if h.random.IntN(5) > 0 {
			v.updated = day(h.random.IntN(6))
			meta = fmt.Sprintf(`"meta":{"versionId":"%d","lastUpdated":%q}`, h.serial, v.updated.Format(time.RFC3339))
		}
		members := []string{meta}
		switch typ {
		case "Patient":
			v.subjects = []string{v.id}
		case "Observation":
			v.subjects = []string{h.pick("pa")}
			members = append(members, ref("subject", "Patient/"+v.subjects[0]))
		case "Appointment":
			a, b := h.pick("pa"), h.pick("pa")
			v.subjects = []string{a, b}
			members = append(members, fmt.Sprintf(`"participant":[{"actor":{"reference":"Patient/%s"}},`+
				`{"actor":{"reference":"Patient/%s"}}]`, a, b))
		case "Provenance":
			v.targets = []string{h.pick("ob"), h.pick("ob")}
			members = append(members, targets("Observation/"+v.targets[0], "Observation/"+v.targets[1]))
		}
		slices.Sort(v.subjects)
		v.subjects = slices.Compact(v.subjects)
		v.body = resource(typ, v.id, members...)
		lines = append(lines, v.body)
		h.add(v)
	}
	for _, v := range slices.Clone(h.versions) { // a Provenance whose patients change has a new version
		if v.typ != "Provenance" || v.ended != never {
			continue
		}
		subjects := h.ofTargets(v, load)
		if v.born == load {
			v.subjects = subjects
		} else if !slices.Equal(subjects, v.subjects) {
			again := *v
			again.subjects, again.born = subjects, load
			h.add(&again)
		}
	}
	h.random.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	return lines
}

// add adds a version in place of the current one.
func (h *histories) add(v *modelVersion) {
	if old := h.at(v.typ, v.id, v.born); old != nil {
		old.ended = v.born
	}
	h.versions = append(h.versions, v)
}

// ofTargets returns the patients of the targets, and Somebody if one is not held. It returns none without a patient.
func (h *histories) ofTargets(v *modelVersion, load int) []string {
	subjects := map[string]bool{}
	for _, id := range v.targets {
		if target := h.at("Observation", id, load); target != nil {
			subjects[target.subjects[0]] = true
		} else {
			subjects[source.Somebody] = true
		}
	}
	if len(subjects) == 1 && subjects[source.Somebody] {
		return nil
	}
	return slices.Sorted(maps.Keys(subjects))
}

// check compares all queries from one load to another.
func (h *histories) check(t *testing.T, after, asOf int) {
	t.Helper()
	from, to := h.instants[after], h.instants[asOf]
	since := day(h.random.IntN(7) - 1)
	patients := slices.DeleteFunc([]string{"pa0", "pa1", "pa2", "pa3", "pa4", "pa5"}, func(string) bool {
		return h.random.IntN(2) == 0
	})
	bounds := []string{"", source.NoPatient, "pa1", "pa2", "pa4"}
	low, high := bounds[h.random.IntN(5)], bounds[h.random.IntN(5)]
	about := func(subjects []string) bool {
		return slices.ContainsFunc(subjects, func(s string) bool { return slices.Contains(patients, s) })
	}
	within := func(subjects []string) bool {
		first := ""
		if len(subjects) > 0 {
			first = subjects[0]
		}
		return low <= first && (high == "" || first < high)
	}
	for _, typ := range []string{"Patient", "Observation", "Appointment", "Questionnaire", "Provenance"} {
		for _, w := range []struct {
			source.Window
			has func(*modelVersion) bool
		}{
			{source.Window{After: from}, func(v *modelVersion) bool { return v.born > after }},
			{source.Window{Since: since}, func(v *modelVersion) bool { return v.updated.IsZero() || v.updated.After(since) }},
			{source.Window{}, func(*modelVersion) bool { return true }},
		} {
			what := fmt.Sprintf("%s as of load %d, after %d, since %s", typ, asOf, after, since)
			expected := func(wanted func([]string) bool) []string {
				return h.names(func(v *modelVersion) bool {
					return v.typ == typ && v.visible(asOf) && w.has(v) && wanted(v.subjects)
				})
			}
			if fhir.InCompartment(typ) {
				got := h.read(t, func(yield func(source.Resource) error) error {
					q := source.Query{Type: typ, Patients: patients, AsOf: to, Window: w.Window}
					return h.src.ForPatients(t.Context(), q, yield)
				})
				same(t, fmt.Sprintf("%s of %v", what, patients), got, expected(about))
			}
			got := h.read(t, func(yield func(source.Resource) error) error {
				q := source.EverythingQuery{Type: typ, From: low, To: high, AsOf: to, Window: w.Window}
				return h.src.Everything(t.Context(), q, yield)
			})
			same(t, fmt.Sprintf("%s from %q to %q", what, low, high), got, expected(within))
		}
		for _, w := range []source.Window{{After: from}, {Since: from}, {}} {
			first := after
			if w == (source.Window{}) {
				first = -1
			}
			what := fmt.Sprintf("deleted %s from load %d to %d, %+v", typ, first, asOf, w)
			same(t, fmt.Sprintf("%s of %v", what, patients),
				h.deleted(t, source.DeletedQuery{Type: typ, Patients: patients, AsOf: to, Window: w}),
				h.expectDeleted(typ, first, asOf, about))
			same(t, fmt.Sprintf("%s from %q to %q", what, low, high),
				h.deleted(t, source.DeletedQuery{Type: typ, From: low, To: high, AsOf: to, Window: w}),
				h.expectDeleted(typ, first, asOf, within))
		}
	}
	var news []string
	must(t, h.src.NewPatients(t.Context(), from, to, func(id string) error { news = append(news, id); return nil }))
	var want []string
	for n := range 6 {
		id := fmt.Sprint("pa", n)
		if h.at("Patient", id, asOf) != nil && h.at("Patient", id, after) == nil {
			want = append(want, id)
		}
	}
	if !slices.Equal(news, want) {
		t.Errorf("new patients from load %d to %d: got %v, want %v", after, asOf, news, want)
	}
}

// names returns the versions as lines of subjects and bodies, sorted.
func (h *histories) names(has func(*modelVersion) bool) (list []string) {
	for _, v := range h.versions {
		if has(v) {
			list = append(list, fmt.Sprint(v.subjects, v.body))
		}
	}
	slices.Sort(list)
	return list
}

func (h *histories) read(t *testing.T, query func(func(source.Resource) error) error) (list []string) {
	t.Helper()
	must(t, query(func(r source.Resource) error {
		list = append(list, fmt.Sprint(r.Subjects, string(r.Body)))
		return nil
	}))
	slices.Sort(list)
	return list
}

func (h *histories) deleted(t *testing.T, q source.DeletedQuery) (list []string) {
	t.Helper()
	must(t, h.src.Deleted(t.Context(), q, func(d source.Deletion) error {
		load, _ := slices.BinarySearchFunc(h.instants, d.At, time.Time.Compare) // the snapshot is after the load
		list = append(list, fmt.Sprint(d.ID, d.Before, d.Held, d.Now, load))
		return nil
	}))
	slices.Sort(list)
	return list
}

// expectDeleted returns what ended after the first load, by the patients before, of the same patients the last.
func (h *histories) expectDeleted(typ string, first, last int, wanted func([]string) bool) []string {
	newest := map[string]*modelVersion{}
	for _, v := range h.versions {
		if v.typ != typ || v.ended <= first || v.ended > last || !wanted(v.subjects) {
			continue
		}
		key := fmt.Sprint(v.id, v.subjects)
		if old := newest[key]; old == nil || old.ended < v.ended {
			newest[key] = v
		}
	}
	var list []string
	for _, v := range newest {
		now := h.at(typ, v.id, last)
		if now == nil {
			now = &modelVersion{}
		} else if slices.Equal(now.subjects, v.subjects) {
			continue
		}
		list = append(list, fmt.Sprint(v.id, v.subjects, now.typ != "", now.subjects, v.ended))
	}
	slices.Sort(list)
	return list
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}
