package pipeline_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// database is a store in PostgreSQL.
type database struct {
	*postgres.Source

	in *pgxpool.Pool
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	cfg := pgdb.Config{URL: testenv.Postgres(t), Connections: 8}
	_, err := pgdb.Migrate(t.Context(), cfg.URL)
	must(t, err)
	d := &database{}
	d.in, err = postgres.OpenLoader(t.Context(), cfg)
	must(t, err)
	t.Cleanup(d.in.Close)
	d.Source, err = postgres.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Source.Close()) })
	return d
}

// load makes one load of the bodies by Type/id; "" deletes a resource.
func (d *database) load(t *testing.T, changes map[string]string) {
	t.Helper()
	load, err := postgres.BeginLoad(t.Context(), d.in, postgres.LoadConfig{Parallel: 2, History: time.Hour, Deletions: time.Hour})
	must(t, err)
	defer func() { must(t, load.Close(context.WithoutCancel(t.Context()))) }()
	for name, body := range changes {
		typ, id, _ := strings.Cut(name, "/")
		if body == "" {
			must(t, load.Delete(t.Context(), []postgres.Deletion{{Ref: fhir.Ref{Type: typ, ID: id}}}))
			continue
		}
		facts, err := new(fhir.Scanner).Scan([]byte(body))
		must(t, err)
		must(t, load.Stage(t.Context(), typ, []postgres.Line{{Facts: facts, Body: []byte(body)}}))
	}
	_, err = load.Seal(t.Context(), nil, nil)
	must(t, err)
}

func (d *database) exec(t *testing.T, text string) {
	t.Helper()
	_, err := d.in.Exec(t.Context(), text)
	must(t, err)
}

// referrals is a random store of what leads to referenced resources.
type referrals struct {
	random *rand.Rand
	serial int
	held   map[string]string // by Type/id
	gone   map[string]int    // by Type/id: the serial of the last deletion
	byDate bool              // a Provenance whose target is loaded after it has an old date: there is none about data
}

var referralTypes = []string{"Observation", "Organization", "Patient", "Practitioner", "PractitionerRole", "Provenance"}

// change returns random changes, mostly of referenced resources.
func (r *referrals) change(n int, types ...string) map[string]string {
	changes := map[string]string{}
	pick := func(prefix string, n int) string { return fmt.Sprint(prefix, r.random.IntN(n)) }
	referenced := func() string {
		return []string{pick("Practitioner/d", 4), pick("PractitionerRole/r", 4), pick("Organization/o", 4)}[r.random.IntN(3)]
	}
	for range n {
		r.serial++
		typ := types[r.random.IntN(len(types))]
		id, more := pick(strings.ToLower(typ[:2])+"-", 4), ""
		switch typ {
		case "Patient":
			id = pick("pat-", 4)
			more = ref("managingOrganization", pick("Organization/o", 4))
		case "Observation":
			id, more = pick("obs-", 8), ref("subject", pick("Patient/pat-", 4))+ref("device", referenced())
		case "Practitioner":
			id = []string{pick("d", 4), pick("agent", 3)}[r.random.IntN(2)] // only Provenance mentions agents
		case "PractitionerRole":
			id, more = pick("r", 4), ref("practitioner", pick("Practitioner/d", 4))+ref("organization", pick("Organization/o", 4))
		case "Organization":
			id, more = pick("o", 4), ref("partOf", pick("Organization/o", 4))
		case "Provenance":
			target := referenced()
			id = pick("about-them-", 4)
			if r.random.IntN(3) == 0 && !r.byDate {
				id, target = pick("about-data-", 4), pick("Observation/obs-", 8)
			}
			more = fmt.Sprintf(`,"target":[{"reference":%q}],"agent":[{"who":{"reference":%q}}]`, target, pick("Practitioner/agent", 3))
		}
		name := typ + "/" + id
		if r.random.IntN(6) == 0 {
			if r.held[name] != "" {
				changes[name], r.gone[name] = "", r.serial
			}
			delete(r.held, name)
			continue
		}
		changes[name] = line(typ, id, fmt.Sprintf(`,"meta":{"versionId":"%d","lastUpdated":%q}`,
			r.serial, time.Now().UTC().Format(time.RFC3339Nano)), more)
		r.held[name] = changes[name]
	}
	return changes
}

// TestReferencedResourcesOfOldData: whatever leads to a referenced resource that changed, the copy of a client who follows a
// group is what a whole export returns. The store knows who mentions what, or a release that does not record it has loaded.
func TestReferencedResourcesOfOldData(t *testing.T) {
	t.Parallel()
	for seed := range uint64(testenv.Seeds(t, 2)) {
		for _, kind := range []string{"after", "since"} {
			t.Run(fmt.Sprint(kind, seed), func(t *testing.T) {
				t.Parallel()
				d := newDatabase(t)
				fx := newFixture(t, d, "pat-0", "pat-1", "pat-2")
				r := &referrals{random: rand.New(rand.NewPCG(seed, 41)), held: map[string]string{}, gone: map[string]int{}, byDate: kind == "since"}
				d.load(t, r.change(60, referralTypes...))
				request := export.Request{GroupID: groupID, Types: referralTypes}
				copied := client{}
				first := fx.run(request)
				copied.apply(t, first)
				last := first.job.Snapshot
				led := 0
				for range 6 {
					known := r.random.IntN(4) > 0
					d.load(t, r.change(1+r.random.IntN(3), "Organization", "Practitioner", "PractitionerRole", "Provenance", "Observation"))
					if !known {
						d.exec(t, "DELETE FROM mention")
						d.exec(t, "UPDATE load_batch SET mentions = NULL")
					}
					increment := request
					if kind == "after" {
						increment.After = last
					} else {
						increment.Since = last
					}
					got := fx.run(increment)
					copied.apply(t, got)
					last = got.job.Snapshot
					scopes := fx.scopes(got.job.ID)
					if scopes[export.ScopeLeading] > 0 && !known || scopes[export.ScopeFollowed] > 0 && known {
						t.Errorf("mentions known: %v, units: %v", known, scopes)
					}
					led += scopes[export.ScopeLeading]
				}
				if led == 0 {
					t.Error("no resource that leads to a changed one was looked for")
				}
				full := client{}
				full.apply(t, fx.run(request))
				for name, text := range full {
					if copied[name] != text {
						t.Errorf("%s: the copy has %q, a whole export %q", name, copied[name], text)
					}
				}
				for name := range copied {
					typ, _, _ := strings.Cut(name, "/")
					_, whole := full[name]
					// What references it only since its deletion is no reason to tell of it.
					references := func(text string) bool {
						return strings.Contains(text, `"`+name+`"`) && serialOf(t, text) < r.gone[name]
					}
					if !whole && r.held[name] == "" && typ != "Provenance" &&
						slices.ContainsFunc(slices.Collect(maps.Values(full)), references) {
						t.Errorf("%s was deleted, is still referenced, and was not told", name)
					}
				}
			})
		}
	}
}

func serialOf(t *testing.T, line string) (serial int) {
	t.Helper()
	var r struct{ Meta struct{ VersionID string } }
	must(t, json.Unmarshal([]byte(line), &r))
	serial, err := strconv.Atoi(r.Meta.VersionID)
	must(t, err)
	return serial
}

// scopes counts the export units of a job by scope.
func (fx *fixture) scopes(id export.JobID) map[export.Scope]int {
	fx.t.Helper()
	scopes := map[export.Scope]int{}
	must(fx.t, fx.jobs.Results(fx.t.Context(), id, func(unit export.Unit, _ export.Result) error {
		if unit.Kind == export.KindExport {
			scopes[unit.Scope]++
		}
		return nil
	}))
	return scopes
}

// oldData is a history in which nothing but Practitioners changes after the instant that it returns.
func oldData(t *testing.T, patients int, more ...string) (h *history, before time.Time) {
	t.Helper()
	h = &history{now: instant.Truncate(time.Second), mentions: true}
	for n := range patients {
		h.put(t, "Patient", fmt.Sprint("pat-", n), patient(n))
		h.put(t, "Observation", fmt.Sprint("obs-", n), observation(n, n, more...))
	}
	before = h.now
	h.now = h.now.Add(time.Minute)
	return h, before
}

// practised is a Practitioner with a date in the history.
func (h *history) practised(t *testing.T, id string) string {
	t.Helper()
	text := line("Practitioner", id, fmt.Sprintf(`,"meta":{"lastUpdated":%q}`, h.now.Format(time.RFC3339)))
	h.put(t, "Practitioner", id, text)
	return text
}

// TestDataOfOthersLeadsNowhere: a changed Practitioner whom only data of outsiders references, or only lines that are withheld
// or dropped, is not exported.
func TestDataOfOthersLeadsNowhere(t *testing.T) {
	t.Parallel()
	const performer = `,"performer":[{"reference":"Practitioner/d"}]`
	both := line("Appointment", "app-x", `,"participant":[{"actor":{"reference":"Patient/pat-0"}},`+
		`{"actor":{"reference":"Patient/pat-1"}},{"actor":{"reference":"Practitioner/d"}}]`)
	late := observation("x", 0, performer, fmt.Sprintf(`,"meta":{"lastUpdated":%q}`, instant.Add(time.Hour).Format(time.RFC3339)))
	for name, test := range map[string]struct {
		members []string
		old     map[string]string
		want    bool
	}{
		"a member's":        {[]string{"pat-0"}, map[string]string{"Observation/obs-x": observation("x", 0, performer)}, true},
		"an outsider's":     {[]string{"pat-0"}, map[string]string{"Observation/obs-x": observation("x", 1, performer)}, false},
		"of both":           {[]string{"pat-0"}, map[string]string{"Appointment/app-x": both}, false},
		"of two members":    {[]string{"pat-0", "pat-1"}, map[string]string{"Appointment/app-x": both}, true},
		"later than _until": {[]string{"pat-0", "pat-1"}, map[string]string{"Observation/obs-x": late}, false},
		"later than _until, and another's": {[]string{"pat-0", "pat-1"}, map[string]string{
			"Observation/obs-x": late, "Observation/obs-y": observation("y", 1, performer),
		}, true},
		"of a type that is not asked for": {[]string{"pat-0"}, map[string]string{
			"Condition/con-x": line("Condition", "con-x", ref("subject", "Patient/pat-0"), performer)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, before := oldData(t, 3)
			h.now = before
			for name, body := range test.old {
				typ, id, _ := strings.Cut(name, "/")
				h.put(t, typ, id, body)
			}
			h.now = h.now.Add(time.Minute)
			changed := h.practised(t, "d")
			fx := newFixture(t, h, test.members...)
			got := fx.run(export.Request{
				GroupID: groupID, Types: []string{"Appointment", "Observation", "Patient", "Practitioner"}, After: before,
				Until: h.now.Add(time.Second),
			})
			var want []string
			if test.want {
				want = []string{changed}
			}
			got.wantLines(t, want...)
			if scopes := fx.scopes(got.job.ID); scopes[export.ScopeLeading] != 1 || scopes[export.ScopeFollowed] != 0 {
				t.Errorf("units: %v", scopes)
			}
		})
	}
}

// TestOnePatientLeadsToWhatAllMention: the cost follows what changed, not who mentions it.
func TestOnePatientLeadsToWhatAllMention(t *testing.T) {
	t.Parallel()
	const patients = 200
	h, before := oldData(t, patients, `,"performer":[{"reference":"Practitioner/d"}]`)
	changed := h.practised(t, "d")
	h.practised(t, "unknown")
	fx := newFixture(t, h)
	fx.people.grant.Levels = export.Levels()
	request := export.Request{Level: export.PatientLevel, Types: []string{"Observation", "Patient", "Practitioner"}, After: before}
	h.looked = 0
	fx.run(request).wantLines(t, changed)
	if h.looked > 2 { // two types of one patient
		t.Errorf("%d patients were read for one Practitioner", h.looked)
	}
}

// TestAllDataIsReadForTheReferences: what the mentions cannot narrow, or a rare line would make one unit read much.
func TestAllDataIsReadForTheReferences(t *testing.T) {
	t.Parallel()
	const performer = `,"performer":[{"reference":"Practitioner/d"}]`
	types := []string{"Observation", "Patient", "Practitioner", "Provenance"}
	for name, test := range map[string]struct {
		change func(*history, *export.Request)
		led    bool
	}{
		"known":          {func(*history, *export.Request) {}, true},
		"unknown":        {func(h *history, _ *export.Request) { h.mentions = false }, false},
		"filter":         {func(_ *history, r *export.Request) { r.Filters = []string{"Observation?status=final"} }, false},
		"early until":    {func(h *history, r *export.Request) { r.Until = h.now.Add(-time.Second) }, false},
		"late until":     {func(h *history, r *export.Request) { r.Until = h.now.Add(time.Second) }, true},
		"associated":     {func(_ *history, r *export.Request) { r.Associated = export.RelevantProvenance }, false},
		"nobody changed": {func(h *history, r *export.Request) { r.After = h.now }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, before := oldData(t, 2, performer)
			h.practised(t, "d")
			request := export.Request{GroupID: groupID, Types: types, After: before}
			test.change(h, &request)
			fx := newFixture(t, h, "pat-0")
			got := fx.run(request)
			scopes := fx.scopes(got.job.ID)
			followed := !test.led && name != "nobody changed"
			if scopes[export.ScopeLeading] > 0 != test.led || scopes[export.ScopeFollowed] > 0 != followed {
				t.Errorf("units: %v", scopes)
			}
		})
	}
}

// TestKilledWhileLeading: the unit of ScopeLeading, and the plan before it, die at every request to the store.
func TestKilledWhileLeading(t *testing.T) { // pitfalls 8, 9
	t.Parallel()
	for _, scope := range []export.Scope{export.ScopeCohort, export.ScopeLeading} {
		h, before := oldData(t, 3, `,"performer":[{"reference":"PractitionerRole/r"}]`)
		h.now = before
		h.put(t, "PractitionerRole", "r", line("PractitionerRole", "r", ref("practitioner", "Practitioner/d")))
		h.now = h.now.Add(time.Minute)
		role, _ := h.at("PractitionerRole", "r", h.now), h.practised(t, "d")
		fx := newFixture(t, h, "pat-0", "pat-1")
		fx.cfg.MaxAttempts = 1000
		w := fx.worker()
		kills := 0
		id := fx.ask(export.Request{
			GroupID: groupID, Types: []string{"Observation", "Patient", "Practitioner", "PractitionerRole"}, After: before,
		})
		job := fx.driveOne(id, func(task queue.Task) {
			of := task.Kind == export.KindPlan
			if scope == export.ScopeLeading {
				of = strings.HasPrefix(string(task.Unit), "leading-")
			}
			for request := 1; of; request++ {
				lease := fx.claim(task)
				died := fx.dieAt(w, lease, request)
				task = fx.again(task)
				if !died {
					break
				}
				kills++
			}
			must(t, w.Handle(t.Context(), task))
		})
		if kills < 2 {
			t.Errorf("%d deaths of scope %q", kills, scope)
		}
		fx.outcome(job).wantLines(t, string(role.Body), string(h.at("Practitioner", "d", h.now).Body))
	}
}

// TestMentionsThatFail: an error of the source is no reason to read less.
func TestMentionsThatFail(t *testing.T) {
	t.Parallel()
	h, before := oldData(t, 2, `,"performer":[{"reference":"Practitioner/d"}]`)
	changed := h.practised(t, "d")
	broken := &brokenMentions{history: h, left: 2}
	fx := newFixture(t, broken, "pat-0")
	got := fx.run(export.Request{GroupID: groupID, Types: []string{"Observation", "Practitioner"}, After: before})
	got.wantLines(t, changed)
	if broken.left != 0 {
		t.Errorf("%d failures were not met", broken.left)
	}
}

// brokenMentions is a history that fails once for the plan and once for the unit.
type brokenMentions struct {
	*history

	left   int
	failed [2]bool
}

func (b *brokenMentions) Mentions(ctx context.Context, q source.MentionsQuery, yield func(by, ref string) error) error {
	which := 0
	if q.Patients != nil {
		which = 1
	}
	if !b.failed[which] {
		b.failed[which] = true
		b.left--
		return fmt.Errorf("the source is unreachable")
	}
	return b.history.Mentions(ctx, q, yield)
}

// TestMentionsThatAreForgotten: the source knew who mentions what during the plan, and does not know afterwards.
func TestMentionsThatAreForgotten(t *testing.T) {
	t.Parallel()
	h, before := oldData(t, 200, `,"performer":[{"reference":"Practitioner/d"}]`)
	changed := h.practised(t, "d")
	fx := newFixture(t, h, "pat-0", "pat-1", "pat-199")
	w := fx.worker()
	id := fx.ask(export.Request{GroupID: groupID, Types: []string{"Observation", "Practitioner"}, After: before})
	job := fx.driveOne(id, func(task queue.Task) {
		h.mentions = task.Kind == export.KindPlan
		must(t, w.Handle(t.Context(), task))
	})
	if fx.scopes(id)[export.ScopeLeading] != 1 {
		t.Errorf("units: %v", fx.scopes(id))
	}
	fx.outcome(job).wantLines(t, changed)
}

// TestNoDataThatCouldLead: the store holds none of the types that could reference what changed.
func TestNoDataThatCouldLead(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.load(t, map[string]string{
		"Patient/pat-0":     line("Patient", "pat-0"),
		"Observation/obs-0": observation(0, 0, `,"performer":[{"reference":"Practitioner/d"}]`),
		"Practitioner/d":    line("Practitioner", "d"),
	})
	fx := newFixture(t, d, "pat-0")
	types := []string{"Immunization", "Practitioner"}
	first := fx.run(export.Request{GroupID: groupID, Types: types})
	d.load(t, map[string]string{"Practitioner/d": line("Practitioner", "d", `,"active":true`)})
	got := fx.run(export.Request{GroupID: groupID, Types: types, After: first.job.Snapshot})
	got.wantLines(t)
	got.wantIssues(t, "")
	if got.job.State != export.Completed {
		t.Errorf("state %s: %s", got.job.State, got.job.Failure)
	}
}
