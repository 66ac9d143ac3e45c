package pipeline_test

import (
	"context"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// narrowed counts what the source below leaves out.
type narrowed struct {
	source.Source

	leftOut atomic.Int64
}

func (n *narrowed) counting(narrowing source.Narrowing) source.Narrowing {
	if leftOut := narrowing.LeftOut; leftOut != nil {
		narrowing.LeftOut = func(rows int64) { n.leftOut.Add(rows); leftOut(rows) }
	}
	return narrowing
}

func (n *narrowed) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	q.Narrowing = n.counting(q.Narrowing)
	return n.Source.ForPatients(ctx, q, yield)
}

func (n *narrowed) Everything(ctx context.Context, q source.EverythingQuery, yield func(source.Resource) error) error {
	q.Narrowing = n.counting(q.Narrowing)
	return n.Source.Everything(ctx, q, yield)
}

// loaded returns a source on a database with the lines, and the URL of the database.
func loaded(t *testing.T, lines ...string) (*postgres.Source, string) {
	t.Helper()
	url := testenv.Postgres(t)
	_, err := pgdb.Migrate(t.Context(), url)
	must(t, err)
	pool, err := postgres.OpenLoader(t.Context(), pgdb.Config{URL: url, Connections: 2})
	must(t, err)
	defer pool.Close()
	load, err := postgres.BeginLoad(t.Context(), pool, postgres.LoadConfig{Parallel: 1})
	must(t, err)
	byType := map[string][]postgres.Line{}
	for i, line := range lines {
		facts, err := new(fhir.Scanner).Scan([]byte(line))
		must(t, err)
		byType[facts.Type] = append(byType[facts.Type], postgres.Line{Place: int64(i), Facts: facts, Body: []byte(line)})
	}
	for typ, lines := range byType {
		must(t, load.Stage(t.Context(), typ, lines))
	}
	_, err = load.Seal(t.Context(), nil, nil)
	must(t, err)
	must(t, load.Close(t.Context()))
	src, err := postgres.Open(t.Context(), pgdb.Config{URL: url, Connections: 4})
	must(t, err)
	t.Cleanup(func() { must(t, src.Close()) })
	return src, url
}

// TestNarrowedExports: an export whose source leaves out what the filter drops has the same lines, numbers and issues as one
// whose source returns everything.
func TestNarrowedExports(t *testing.T) {
	t.Parallel()
	store := append([]string{
		line("Encounter", "dated", ref("subject", "Patient/pat-1"), `,"period":{"start":"2024-05-01","end":"2024-05-02"}`,
			ref("serviceProvider", "Organization/near")),
		line("Encounter", "undated", ref("subject", "Patient/pat-2"), ref("serviceProvider", "Organization/far")),
		line("Encounter", "early", ref("subject", "Patient/pat-2"), `,"period":{"end":"2001"}`, ref("serviceProvider", "Organization/far"),
			`,"meta":{"lastUpdated":"2001-01-01T00:00:00Z"}`),
		line("Encounter", "stranger", ref("subject", "Patient/pat-9"), `,"period":{"end":"2001"}`),
		line("Encounter", "unheld", ref("subject", "Patient/pat-77"), `,"period":{"end":"2001"}`),
		line("Encounter", "nobody", `,"period":{"end":"2001"}`),
		line("Encounter", "two", ref("subject", "Patient/pat-1"), `,"period":{"end":"2001"}`,
			`,"contained":[{"resourceType":"Condition","id":"c","subject":{"reference":"Patient/pat-9"}}]`),
		line("Organization", "near"), line("Organization", "far"),
		provenance("early", "Encounter/early"), provenance("dated", "Encounter/dated"), provenance("both", "Encounter/dated", "Encounter/early"),
	}, wholeStore...)
	src, url := loaded(t, store...)
	counting := &narrowed{Source: src}
	fx := newFixture(t, counting, members...)
	fx.people.grant.Groups = directory.Everything()
	types := []string{"Appointment", "Encounter", "Group", "Location", "Observation", "Organization", "Patient", "Provenance", "Substance"}
	filters := []string{"Encounter?date=ge2024", "Observation?status=final", "Appointment?status=booked", "Patient?gender=other",
		"Location?status=active", "Substance?_tag=x", "Group?_tag=x", "Provenance?recorded=ge2024"}
	requests := map[string]export.Request{}
	for _, level := range export.Levels() {
		requests[string(level)] = export.Request{Level: level, Types: types, Filters: filters}
	}
	requests["some patient"], requests["some system"] = requests[string(export.PatientLevel)], requests[string(export.SystemLevel)]
	group, system := requests[string(export.GroupLevel)], requests[string(export.SystemLevel)]
	group.GroupID = groupID
	requests[string(export.GroupLevel)] = group
	incremental := group
	incremental.Since = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	requests["since"] = incremental
	group.Filters, system.Filters = filters[:1], filters[:1]
	group.Associated, system.Associated = export.RelevantProvenance, export.LatestProvenance
	requests["group associated"], requests["system associated"] = group, system
	organized := group
	organized.Associated, organized.OrganizedBy = "", "Patient"
	requests["organized"] = organized
	followed := group
	followed.Associated, followed.Types, followed.Through = "", []string{"Organization"}, []string{"Encounter"}
	requests["followed"] = followed

	all := func() map[string][]any {
		results := map[string][]any{}
		for name, request := range requests {
			fx.people.patients = directory.NameList{All: true}
			if strings.HasPrefix(name, "some ") {
				fx.people.patients = directory.NameList{Names: []string{"pat-1", "pat-2"}}
			}
			got := fx.run(request)
			numbers := ""
			if request.OrganizedBy == "" {
				numbers = got.numbers(t)
			}
			results[name] = []any{got.job.State, got.lines, got.issues, got.deleted, numbers, got.job.Resources}
		}
		return results
	}
	with := all()
	if counting.leftOut.Swap(0) == 0 {
		t.Error("the source left out nothing")
	}
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	_, err = conn.Exec(t.Context(), "UPDATE resource SET sketch_rules = NULL")
	must(t, err)
	must(t, conn.Close(t.Context()))
	without := all()
	if n := counting.leftOut.Load(); n != 0 {
		t.Errorf("the source left out %d without sketches", n)
	}
	for name := range requests {
		if !reflect.DeepEqual(with[name], without[name]) {
			t.Errorf("%s: narrowed\n%v\nelse\n%v", name, with[name], without[name])
		}
		if with[name][0] != export.Completed {
			t.Errorf("%s: %v %+v", name, with[name][0], with[name])
		}
	}
}
