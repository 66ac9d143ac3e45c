package pgdb_test

import (
	"context"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func dial(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// expect compares the only value of a query, as text.
func expect(t *testing.T, conn *pgx.Conn, query, want string) {
	t.Helper()
	var got *string
	if err := conn.QueryRow(t.Context(), "SELECT v::text FROM ("+query+") AS q (v)").Scan(&got); err != nil {
		t.Errorf("%s: %v", query, err)
	} else if got == nil || *got != want {
		t.Errorf("%s: %v, want %s", query, got, want)
	}
}

// reader creates a role that may read all tables, and returns the URL with which it connects.
func reader(t *testing.T, conn *pgx.Conn, owner string) (readerURL, role string) {
	t.Helper()
	role = "reader_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	exec(t, conn, "CREATE ROLE "+role+" LOGIN PASSWORD 'x'", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role)
	t.Cleanup(func() { exec(t, conn, "DROP OWNED BY "+role, "DROP ROLE "+role) })
	mine, err := url.Parse(owner)
	must(t, err)
	mine.User = url.UserPassword(role, "x")
	return mine.String(), role
}

// TestOldTableNames runs statements of the release before migration 3 on the views that the migration creates, over
// connections that were opened before it.
func TestOldTableNames(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 2))
	loader := dial(t, url)
	exec(t, loader, "INSERT INTO load (no, sealed_at) VALUES (1, now() - interval '1 day')")
	readerURL, _ := reader(t, loader, url)
	read := dial(t, readerURL)
	reads := func() { // pgx prepares these statements, and reuses them after the migration
		t.Helper()
		expect(t, read, "SELECT max(no) FROM load WHERE sealed_at <= now()", "1")
		expect(t, read, "SELECT h.load > (SELECT max(no) FROM load WHERE sealed_at <= now()) FROM horizon AS h", "false")
		expect(t, read, `SELECT count(*) FROM also AS a JOIN resource_observation AS r ON r.id = a.id
			WHERE (SELECT true FROM also WHERE type = 'Observation' LIMIT 1) AND a.patient = ANY(ARRAY['a'])`, "0")
		expect(t, read, "SELECT count(*) FROM size WHERE resources > 0", "0")
	}
	reads()

	refusedDuringLoad(t, loader, url)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	reads()

	expect(t, loader, "SELECT relkind FROM pg_class WHERE oid = 'load'::regclass", "v")
	exec(t, loader, "INSERT INTO load (no) SELECT coalesce(max(no), 0) + 1 FROM load RETURNING no",
		"UPDATE load SET abandoned = true WHERE sealed_at IS NULL AND NOT abandoned",
		"UPDATE load SET undone = true WHERE no = ANY(ARRAY[2])",
		"INSERT INTO load (no) SELECT coalesce(max(no), 0) + 1 FROM load RETURNING no")
	expect(t, loader, "SELECT array_agg((no, abandoned, undone) ORDER BY no) FROM load_batch", `{"(1,f,f)","(2,t,t)","(3,f,f)"}`)
	for range 2 {
		exec(t, loader, "INSERT INTO also (type, patient, id) VALUES ('Appointment', 'b', '1') ON CONFLICT DO NOTHING",
			`INSERT INTO size AS s (type, resources, bytes) VALUES ('Patient', 2, 30)
				ON CONFLICT (type) DO UPDATE SET resources = s.resources + 2, bytes = s.bytes + 30`)
	}
	expect(t, loader, "SELECT (type, patient, id) FROM additional_subject", "(Appointment,b,1)")
	expect(t, loader, "SELECT (resources, bytes) FROM type_stats", "(4,60)")
	exec(t, loader, `UPDATE load SET sealed_at = greatest(clock_timestamp(),
			(SELECT max(sealed_at) + interval '1 microsecond' FROM load)) WHERE no = 3 RETURNING sealed_at`,
		`UPDATE horizon SET load = greatest(load, (SELECT coalesce(max(no), 0) FROM load
			WHERE sealed_at < clock_timestamp() - make_interval(secs => 60))) RETURNING load`)
	expect(t, loader, "SELECT load FROM trim_horizon", "1")
	expect(t, loader, "SELECT max(no) FROM load_batch WHERE sealed_at <= clock_timestamp()", "3")

	// A step of a load locks its row through the view.
	exec(t, loader, "BEGIN", "SELECT abandoned FROM load WHERE no = 3 FOR SHARE")
	other := dial(t, url)
	exec(t, other, "SET lock_timeout = '50ms'")
	if _, err := other.Exec(t.Context(), "UPDATE load_batch SET abandoned = true WHERE no = 3"); err == nil {
		t.Error("the row of a load is not locked")
	}
	exec(t, loader, "ROLLBACK")
}

// refusedDuringLoad checks that no migration runs while the connection holds the lock of loads.
func refusedDuringLoad(t *testing.T, loader *pgx.Conn, url string) {
	t.Helper()
	exec(t, loader, "SELECT pg_advisory_lock(x'736c7569636532'::bigint)")
	if _, err := pgdb.Migrate(t.Context(), url); err == nil || !strings.Contains(err.Error(), "a load is running") {
		t.Errorf("migrated during a load: %v", err)
	}
	exec(t, loader, "SELECT pg_advisory_unlock_all()")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMigration5 removes what loads did not trim, and gives readers of the statistics the new table.
func TestMigration5(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 3))
	owner := dial(t, url)
	exec(t, owner, `INSERT INTO resource (born, ended, type, id, patient, others, head, body)
			VALUES (1, 2, 'Appointment', '1', 'a', '{a,b}', '', '{}'), (2, NULL, 'Appointment', '1', 'a', '{a,c}', '', '{}')`,
		`INSERT INTO additional_subject (type, patient, id) VALUES ('Appointment', 'b', '1'), ('Appointment', 'c', '1'),
			('Appointment', 'd', '1'), ('Appointment', 'b', '2'), ('Account', 'b', '1')`,
		"INSERT INTO tombstone (type, id, born, patient) VALUES ('Account', 'old', 1, 'a'), ('Account', 'new', 2, 'a')",
		"UPDATE trim_horizon SET load = 1")
	readerURL, _ := reader(t, owner, url)
	refusedDuringLoad(t, owner, url)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	expect(t, owner, "SELECT array_agg((type, patient, id) ORDER BY patient) FROM additional_subject",
		`{"(Appointment,b,1)","(Appointment,c,1)"}`)
	expect(t, owner, "SELECT array_agg(id) FROM tombstone", "{new}")
	read := dial(t, readerURL)
	expect(t, read, "SELECT count(*) FROM left_out", "0")
	expect(t, read, "SELECT count(*) FROM resource WHERE version IS NULL AND left_out IS NULL", "2")
}

// TestMigration6: every stored type has a table, like the ones from before, for the same readers.
func TestMigration6(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 5))
	owner := dial(t, url)
	readerURL, _ := reader(t, owner, url)
	refusedDuringLoad(t, owner, url)
	read := dial(t, readerURL)
	exec(t, read, "BEGIN", "SELECT FROM resource_patient") // an export goes on meanwhile
	must(t, pgdb.MigrateTo(t.Context(), url, 9))
	exec(t, read, "SELECT FROM resource_observation", "COMMIT")
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	for _, typ := range fhir.StoredTypes() {
		exec(t, owner, `INSERT INTO resource (born, type, id, patient, head, body) VALUES (1, '`+typ+`', '1', '', '', '{}')`)
		expect(t, read, "SELECT count(*) FROM resource_"+strings.ToLower(typ), "1")
	}
	const leaves = "pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = 'resource'::regclass"
	expect(t, owner, "SELECT count(*) FROM "+leaves, strconv.Itoa(len(fhir.StoredTypes())))
	for _, of := range []string{
		"SELECT c.reloptions::text FROM " + leaves,
		`SELECT (SELECT array_agg(replace(pg_get_indexdef(x.indexrelid), c.relname, '') ORDER BY 1)::text FROM pg_index AS x
			WHERE x.indrelid = c.oid) FROM ` + leaves,
		`SELECT (SELECT array_agg((a.attnum, a.attname, a.attnotnull, a.attcompression, a.attcollation)::text ORDER BY a.attnum)::text
			FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0) FROM ` + leaves,
	} {
		expect(t, owner, "SELECT count(DISTINCT v) FROM ("+of+") AS q (v)", "1")
	}
	must(t, pgdb.MigrateTo(t.Context(), url, 5))
	expect(t, owner, "SELECT count(*) FROM resource", strconv.Itoa(len(fhir.ExportableTypes())))
}

// TestMigration8: members of before have always been members, what the previous release adds has a time, and deletions are
// complete from the newest load on. Migration 9 has an index for each type.
func TestMigration8(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 7))
	owner := dial(t, url)
	exec(t, owner, "INSERT INTO load_batch (no, sealed_at) VALUES (1, now() - interval '2 days'), (2, now() - interval '1 day'), (3, NULL)",
		"INSERT INTO directory_group (id, exportable) VALUES ('g', true)",
		"INSERT INTO directory_member (group_id, patient) VALUES ('g', 'old')")
	role := strings.ReplaceAll("reader_"+uuid.NewString(), "-", "")
	exec(t, owner, "CREATE ROLE "+role, "GRANT SELECT ON type_stats TO "+role, "GRANT SELECT, DELETE ON directory_group TO "+role)
	t.Cleanup(func() { exec(t, owner, "RESET ROLE", "DROP OWNED BY "+role, "DROP ROLE "+role) })
	refusedDuringLoad(t, owner, url)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, "INSERT INTO directory_member (group_id, patient) VALUES ('g', 'new')",
		"INSERT INTO directory_subgroup (group_id, member, starts, ends, inactive) VALUES ('g', 'named', '-infinity', 'infinity', false)",
		"INSERT INTO directory_group (id, exportable) VALUES ('named', true), ('other', false)")
	expect(t, owner, "SELECT array_agg((patient, active_since IS NULL) ORDER BY patient) FROM directory_member", `{"(new,f)","(old,t)"}`)
	expect(t, owner, "SELECT array_agg((id, exportable_since IS NULL) ORDER BY id) FROM directory_group",
		`{"(g,t)","(named,f)","(other,t)"}`)
	expect(t, owner, "SELECT deletions FROM trim_horizon", "2")
	expect(t, owner, "SELECT count(*) FROM pg_class WHERE relname ~ '^resource_[a-z]+_window$'", strconv.Itoa(len(fhir.StoredTypes())))
	exec(t, owner, "SET ROLE "+role, "SELECT FROM tombstone", "DELETE FROM directory_group WHERE id = 'other'")
	expect(t, owner, "SELECT array_agg(id) FROM directory_former_group", "{other}")
	exec(t, owner, "RESET ROLE")
	must(t, pgdb.MigrateTo(t.Context(), url, 7))
	expect(t, owner, "SELECT count(*) FROM directory_member", "2")
}

// TestMigration7: a grant of the previous release has no levels, and its statements work afterwards.
func TestMigration7(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 5))
	owner := dial(t, url)
	const set = `INSERT INTO directory_grant (issuer, subject, types, type_names, groups, group_names, patients, patient_names)
		VALUES ('i', 's', 'all', '{}', 'all', '{}', 'all', '{}')
		ON CONFLICT (issuer, subject) DO UPDATE SET types = excluded.types`
	exec(t, owner, set)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, set)
	expect(t, owner, "SELECT levels IS NULL FROM directory_grant", "true")
	for _, levels := range []string{"{}", "{all}", "{NULL}"} {
		if _, err := owner.Exec(t.Context(), "UPDATE directory_grant SET levels = $1", levels); err == nil {
			t.Errorf("levels may be %s", levels)
		}
	}
}

// TestMigration10: rows of before and of loads of the previous release have no sketch, and readers may read the columns.
func TestMigration10(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 9))
	owner := dial(t, url)
	readerURL, _ := reader(t, owner, url)
	const add = "INSERT INTO resource (born, type, id, patient, head, body) VALUES (1, 'Observation', '%', '', '', '{}')"
	exec(t, owner, strings.Replace(add, "%", "old", 1))
	refusedDuringLoad(t, owner, url)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, strings.Replace(add, "%", "new", 1))
	expect(t, dial(t, readerURL), `SELECT count(*) FROM resource_observation
		WHERE (codes, dated_from, dated_to, sketch_rules) IS NOT DISTINCT FROM (NULL, NULL, NULL, NULL)`, "2")
	must(t, pgdb.MigrateTo(t.Context(), url, 9))
	expect(t, owner, "SELECT count(*) FROM resource", "2")
}

// TestMigration11: what loads of before mention is not known, nor what a load of the previous release adds afterwards.
func TestMigration11(t *testing.T) {
	url := testenv.Postgres(t)
	must(t, pgdb.MigrateTo(t.Context(), url, 9))
	owner := dial(t, url)
	const load = "INSERT INTO load_batch (no, sealed_at) SELECT coalesce(max(no), 0) + 1, clock_timestamp() FROM load_batch"
	exec(t, owner, load)
	readerURL, _ := reader(t, owner, url)
	refusedDuringLoad(t, owner, url)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, load)
	expect(t, dial(t, readerURL), "SELECT count(*) FROM mention", "0")
	expect(t, owner, "SELECT count(*) FROM load_batch WHERE mentions IS NULL", "2")
	must(t, pgdb.MigrateTo(t.Context(), url, 9))
	expect(t, owner, "SELECT count(*) FROM load_batch", "2")
}
