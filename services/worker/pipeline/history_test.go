package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// history is a source of versions, in the simplest form: every call looks at all of them. A load at an instant ends
// versions and adds others.
type history struct {
	versions []version
	now      time.Time
	known    time.Time // source.Sizes.DeletionsSince
	mentions bool      // it knows them
	looked   int       // the patients whose data was read whole
}

type version struct {
	source.Resource
	updated     time.Time
	born, ended time.Time // zero: still current
}

// put loads a version of a resource; without a body it deletes the resource.
func (h *history) put(t testing.TB, typ, id, body string) {
	t.Helper()
	for i, v := range h.versions {
		if v.Type == typ && v.ID == id && v.ended.IsZero() {
			h.versions[i].ended = h.now
		}
	}
	if body == "" {
		return
	}
	var scanner fhir.Scanner
	facts, err := scanner.Scan([]byte(body))
	must(t, err)
	v := version{Resource: source.Resource{Type: typ, ID: id, Body: []byte(body)}, updated: facts.LastUpdated, born: h.now}
	v.Subjects = source.Named(nil, facts)
	h.versions = append(h.versions, v)
}

// at returns the version of the resource that reads as of the instant show.
func (h *history) at(typ, id string, at time.Time) *version {
	for i, v := range h.versions {
		if v.Type == typ && v.ID == id && !v.born.After(at) && (v.ended.IsZero() || v.ended.After(at)) {
			return &h.versions[i]
		}
	}
	return nil
}

// ids returns the ids of a type that ever were, ascending.
func (h *history) ids(typ string) []string {
	var ids []string
	for _, v := range h.versions {
		if v.Type == typ {
			ids = append(ids, v.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (h *history) each(
	typ string, asOf time.Time, window source.Window, wanted func(subjects []string) bool, yield func(source.Resource) error,
) error {
	if asOf.IsZero() {
		return errors.New("a query without an instant")
	}
	for _, id := range h.ids(typ) {
		v := h.at(typ, id, asOf)
		if v == nil || !window.After.IsZero() && !v.born.After(window.After) ||
			!window.Since.IsZero() && !v.updated.After(window.Since) || !wanted(v.Subjects) {
			continue
		}
		if err := yield(v.Resource); err != nil {
			return err
		}
	}
	return nil
}

func about(patients []string) func([]string) bool {
	return func(subjects []string) bool {
		return slices.ContainsFunc(subjects, func(s string) bool { return slices.Contains(patients, s) })
	}
}

func within(typ, from, to string) func([]string) bool {
	return func(subjects []string) bool {
		first := ""
		if len(subjects) > 0 && fhir.InCompartment(typ) && subjects[0] < source.Somebody {
			first = subjects[0]
		}
		return from <= first && (to == "" || first < to)
	}
}

func (h *history) Snapshot(context.Context, time.Time) (time.Time, error) { return h.now, nil }

func (h *history) Sizes(context.Context) (source.Sizes, error) {
	sizes := source.Sizes{Types: map[string]source.TypeSize{}, DeletionsSince: h.known}
	for _, v := range h.versions {
		size := sizes.Types[v.Type]
		sizes.Types[v.Type] = source.TypeSize{Resources: size.Resources + 1, Bytes: size.Bytes + int64(len(v.Body))}
	}
	sizes.Patients = sizes.Types["Patient"].Resources
	return sizes, nil
}

func (h *history) LeftOut(context.Context) ([]export.LeftOut, error) { return nil, nil }

// Mentions returns what every version mentions.
func (h *history) Mentions(_ context.Context, q source.MentionsQuery, yield func(by, ref string) error) (err error) {
	if !h.mentions {
		return source.ErrMentionsUnknown
	}
	for _, v := range h.versions {
		by := v.Subjects
		if fhir.IsReferenced(v.Type) {
			by = []string{v.Type + "/" + v.ID}
		}
		fhir.References(v.Body, func(ref fhir.Ref) bool {
			for _, by := range by {
				name := ref.Type + "/" + ref.ID
				asked := fhir.IsReferenced(v.Type)
				if q.Patients != nil {
					asked = slices.Contains(q.Patients, by)
				}
				if err == nil && asked && slices.Contains(q.Refs, name) {
					err = yield(by, name)
				}
			}
			return true
		})
	}
	return err
}

func (h *history) ForPatients(_ context.Context, q source.Query, yield func(source.Resource) error) error {
	if q.Window == (source.Window{}) {
		h.looked += len(q.Patients)
	}
	return h.each(q.Type, q.AsOf, q.Window, about(q.Patients), yield)
}

func (h *history) Everything(_ context.Context, q source.EverythingQuery, yield func(source.Resource) error) error {
	return h.each(q.Type, q.AsOf, q.Window, within(q.Type, q.From, q.To), yield)
}

func (h *history) ByID(_ context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	for _, id := range q.IDs {
		if v := h.at(q.Type, id, q.AsOf); v != nil {
			if err := yield(v.Resource); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *history) About(context.Context, source.AboutQuery, func(source.Resource) error) error {
	return nil
}

func (h *history) Patients(_ context.Context, asOf time.Time, yield func(string) error) error {
	return h.NewPatients(nil, time.Time{}, asOf, yield) //nolint:staticcheck // the context is not used
}

func (h *history) NewPatients(_ context.Context, after, asOf time.Time, yield func(string) error) error {
	for _, id := range h.ids("Patient") {
		if h.at("Patient", id, asOf) != nil && (after.IsZero() || h.at("Patient", id, after) == nil) {
			if err := yield(id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *history) Deleted(_ context.Context, q source.DeletedQuery, yield func(source.Deletion) error) error {
	start := q.After
	if start.IsZero() {
		start = q.Since
	}
	wanted := within(q.Type, q.From, q.To)
	if q.Patients != nil {
		wanted = about(q.Patients)
	}
	told := map[string]bool{}
	for _, v := range slices.Backward(h.versions) {
		key := v.ID + fmt.Sprint(v.Subjects)
		if v.Type != q.Type || v.ended.IsZero() || v.ended.After(q.AsOf) || !v.ended.After(start) || !wanted(v.Subjects) || told[key] {
			continue
		}
		d := source.Deletion{ID: v.ID, Before: v.Subjects, At: v.ended}
		if now := h.at(v.Type, v.ID, q.AsOf); now != nil {
			if d.Held, d.Now = true, now.Subjects; slices.Equal(d.Now, d.Before) {
				continue
			}
		}
		told[key] = true
		if err := yield(d); err != nil {
			return err
		}
	}
	return nil
}

// client is a client that keeps a copy: lines by Type/id.
type client map[string]string

// apply applies an incremental export: nothing is in both lists (M-11).
func (c client) apply(t testing.TB, got outcome) {
	t.Helper()
	for _, line := range got.deleted {
		var bundle struct {
			ResourceType, Type string
			Entry              []struct{ Request struct{ Method, URL string } }
		}
		must(t, json.Unmarshal([]byte(line), &bundle))
		if bundle.ResourceType != "Bundle" || bundle.Type != "transaction" || len(bundle.Entry) == 0 {
			t.Fatalf("not a Bundle of deletions: %s", line)
		}
		for _, entry := range bundle.Entry {
			if entry.Request.Method != "DELETE" {
				t.Fatalf("not a deletion: %s", line)
			}
			delete(c, entry.Request.URL)
			if got.holds(t, entry.Request.URL) {
				t.Errorf("%s is exported and deleted", entry.Request.URL)
			}
		}
	}
	for _, lines := range got.lines {
		for _, line := range lines {
			c[nameOf(t, line)] = line
		}
	}
}

func (o outcome) holds(t testing.TB, name string) bool {
	typ, _, _ := strings.Cut(name, "/")
	return slices.ContainsFunc(o.lines[typ], func(line string) bool { return nameOf(t, line) == name })
}

func nameOf(t testing.TB, line string) string {
	t.Helper()
	var r struct{ ResourceType, ID string }
	must(t, json.Unmarshal([]byte(line), &r))
	return r.ResourceType + "/" + r.ID
}

// story is a random history beside a chain of exports.
type story struct {
	*history
	fx     *fixture
	random *rand.Rand
	joined map[string]time.Time
	left   map[string]bool // ever
	serial int
}

var storyTypes = []string{"Appointment", "Location", "Observation", "Organization", "Patient", "Practitioner", "PractitionerRole"}

func (s *story) pick(prefix string, n int) string { return fmt.Sprint(prefix, s.random.IntN(n)) }

// step makes one random change.
func (s *story) step() {
	t := s.fx.t
	s.serial++
	meta := fmt.Sprintf(`,"meta":{"versionId":"%d","lastUpdated":%q}`, s.serial, s.now.Format(time.RFC3339Nano))
	person := s.pick("pat-", 5)
	switch s.random.IntN(18) {
	case 0, 1, 2, 3:
		id := s.pick("obs-", 12)
		subject := "Patient/" + person
		if s.random.IntN(6) == 0 {
			subject = "Location/l0"
		}
		s.put(t, "Observation", id, line("Observation", id, meta, ref("subject", subject),
			fmt.Sprintf(`,"performer":[{"reference":%q}]`, []string{"Practitioner/", "PractitionerRole/"}[s.random.IntN(2)]+s.pick("d", 3))))
	case 4:
		s.put(t, "Observation", s.pick("obs-", 12), "")
	case 5, 6:
		id := s.pick("app-", 5)
		s.put(t, "Appointment", id, line("Appointment", id, meta, fmt.Sprintf(
			`,"participant":[{"actor":{"reference":"Patient/%s"}},{"actor":{"reference":"Patient/%s"}}]`, person, s.pick("pat-", 5))))
	case 7:
		s.put(t, "Appointment", s.pick("app-", 5), "")
	case 8, 9:
		s.put(t, "Patient", person, line("Patient", person, meta))
	case 10:
		id := s.pick("d", 3)
		s.put(t, "Practitioner", id, line("Practitioner", id, meta))
	case 11:
		if s.random.IntN(2) == 0 {
			s.put(t, "Practitioner", s.pick("d", 3), "")
		} else {
			s.put(t, "Patient", person, "")
		}
	case 14, 15:
		id := s.pick("d", 3)
		s.put(t, "PractitionerRole", id, line("PractitionerRole", id, meta, ref("practitioner", "Practitioner/"+s.pick("d", 3)),
			ref("organization", "Organization/"+s.pick("o", 3))))
	case 16:
		id := s.pick("o", 3)
		s.put(t, "Organization", id, line("Organization", id, meta, ref("partOf", "Organization/"+s.pick("o", 3))))
	case 17:
		typ := []string{"PractitionerRole/d", "Organization/o"}[s.random.IntN(2)]
		typ, prefix, _ := strings.Cut(typ, "/")
		s.put(t, typ, s.pick(prefix, 3), "")
	case 12:
		if _, in := s.joined[person]; !in {
			s.joined[person] = s.now
		}
	case 13:
		if _, in := s.joined[person]; in {
			delete(s.joined, person)
			s.left[person] = true
		}
	}
	s.fx.people.members, s.fx.people.joined = keysOf(s.joined), s.joined
}

// TestAChainOfIncrementalExports: after random changes beside a chain of incremental exports, the copy of a client is what a
// whole export returns. It may keep what only those who left were about, and what nothing references any more.
func TestAChainOfIncrementalExports(t *testing.T) {
	t.Parallel()
	for _, level := range export.Levels() {
		for _, kind := range []string{"after", "since", "until"} {
			for _, everybody := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/%v", level, kind, everybody), func(t *testing.T) {
					t.Parallel()
					fx := newFixture(t, &history{})
					for seed := range 2 * testenv.Seeds(t, 1) {
						fx.chain(t, level, kind, everybody, uint64(seed))
						if t.Failed() {
							t.Fatalf("seed %d", seed)
						}
					}
				})
			}
		}
	}
}

func (fx *fixture) chain(t *testing.T, level export.Level, kind string, everybody bool, seed uint64) {
	t.Helper()
	fx.t = t
	h := &history{now: instant.Truncate(time.Second), mentions: seed%2 == 0}
	s := &story{
		history: h, fx: fx, random: rand.New(rand.NewPCG(seed, 14)), joined: map[string]time.Time{}, left: map[string]bool{},
	}
	fx.source, fx.people.members, fx.people.joined = h, nil, nil
	fx.people.grant.Levels, fx.people.patients = export.Levels(), directory.NameList{All: true}
	if !everybody {
		fx.people.patients = directory.NameList{All: true, Names: []string{"pat-4"}}
	}
	request := export.Request{Level: level, GroupID: groupID, Types: storyTypes}
	copied := client{}
	var last time.Time
	for range 4 {
		for range 1 + s.random.IntN(12) {
			h.now = h.now.Add(time.Second)
			s.step()
		}
		h.now = h.now.Add(time.Second)
		increment := request
		switch {
		case last.IsZero():
		case kind == "after":
			increment.After = last
		default:
			increment.Since = last
		}
		if kind == "until" {
			increment.Until = h.now.Add(time.Hour)
		}
		copied.apply(t, fx.run(increment))
		last = h.now
	}
	full := client{}
	full.apply(t, fx.run(request))
	for name, text := range full {
		if copied[name] != text {
			t.Errorf("%s: the copy has %q, a whole export %q", name, copied[name], text)
		}
	}
	for name, text := range copied {
		if _, whole := full[name]; whole {
			continue
		}
		typ, id, _ := strings.Cut(name, "/")
		now := h.at(typ, id, h.now)
		outsiders := func(subjects []string) bool {
			return slices.ContainsFunc(subjects, func(p string) bool {
				_, member := s.joined[p]
				return level == export.GroupLevel && !member || level != export.GroupLevel && h.at("Patient", p, h.now) == nil
			})
		}
		var scanner fhir.Scanner
		facts, err := scanner.Scan([]byte(text))
		must(t, err)
		switch {
		case fhir.IsReferenced(typ) && level != export.SystemLevel:
		case outsiders(source.Named(nil, facts)) && (level == export.GroupLevel || now != nil):
		case !everybody && level == export.SystemLevel && len(source.Named(nil, facts)) == 0:
		default:
			t.Errorf("%s: the copy still has it (held: %v): %s", name, now != nil, text)
		}
	}
}

// An old resource of a member and of somebody who joined was withheld, and is not in what changed.
func TestAnOldResourceOfSomebodyWhoJoined(t *testing.T) {
	t.Parallel()
	h := &history{now: instant.Truncate(time.Second)}
	fx := newFixture(t, h, "pat-1")
	h.put(t, "Patient", "pat-1", patient(1))
	h.put(t, "Patient", "pat-2", patient(2))
	h.put(t, "Appointment", "app-x", appointment("x", "pat-1", "pat-2"))
	request := export.Request{GroupID: groupID, Types: []string{"Appointment", "Patient"}}
	fx.run(request).wantLines(t, patient(1))
	before := h.now
	h.now = h.now.Add(time.Minute)
	fx.people.members, fx.people.joined = []string{"pat-1", "pat-2"}, map[string]time.Time{"pat-2": h.now}
	h.now = h.now.Add(time.Minute)
	request.After = before
	fx.run(request).wantLines(t, patient(2), appointment("x", "pat-1", "pat-2"))
}

// TestUnknownDeletions: a window that begins before the oldest deletion that the source knows is reported, no other.
func TestUnknownDeletions(t *testing.T) {
	t.Parallel()
	h := &history{now: instant.Truncate(time.Second)}
	h.put(t, "Patient", "pat-1", patient(1))
	fx := newFixture(t, h)
	start := h.now
	h.now = h.now.Add(2 * time.Second)
	for name, test := range map[string]struct {
		request export.Request
		known   time.Time
		told    bool
	}{
		"a full export":        {export.Request{}, start.Add(time.Second), false},
		"all are known":        {export.Request{After: start}, time.Time{}, false},
		"known since then":     {export.Request{After: start}, start, false},
		"known later":          {export.Request{After: start}, start.Add(time.Second), true},
		"known later, by date": {export.Request{Since: start}, start.Add(time.Second), true},
	} {
		h.known = test.known
		test.request.Level, test.request.Types = export.PatientLevel, []string{"Patient"}
		got := fx.run(test.request)
		told := slices.ContainsFunc(got.issues, func(i fhir.Issue) bool {
			return strings.Contains(i.Diagnostics, export.DeletionsUnknown.Text())
		})
		if told != test.told {
			t.Errorf("%s: issues %v, want the unknown deletions told: %v", name, got.issues, test.told)
		}
	}
}
