package pgdb_test

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestQueriesAreObserved(t *testing.T) {
	var mu sync.Mutex
	calls, failed := map[string]int{}, map[string]int{}
	observe := func(operation string, _ time.Time, err error) {
		mu.Lock()
		defer mu.Unlock()
		calls[operation]++
		if err != nil {
			failed[operation]++
		}
	}
	pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: testenv.Postgres(t), Observe: observe})
	must(t, err)
	defer pool.Close()
	var one int
	if err := pool.QueryRow(t.Context(), "SELECT 1 WHERE false").Scan(&one); err == nil {
		t.Fatal("got a row")
	}
	var batch pgx.Batch
	batch.Queue("SELECT 1")
	batch.Queue("SELECT 2")
	must(t, pool.SendBatch(t.Context(), &batch).Close())
	mu.Lock()
	if calls["connect"] != 1 || calls["acquire"] != 2 || calls["query"] != 1 || calls["stream"] != 1 || len(failed) != 0 {
		t.Errorf("calls %v, failed %v", calls, failed)
	}
	mu.Unlock()
	if _, err := pool.Exec(t.Context(), "SELECT FROM nowhere"); err == nil {
		t.Fatal("queried a missing table")
	}
	gone, err := pgdb.Open(t.Context(), pgdb.Config{URL: "postgres://127.0.0.1:1/none?sslmode=disable", Observe: observe})
	must(t, err)
	defer gone.Close()
	if err := gone.Ping(t.Context()); err == nil {
		t.Fatal("pinged without a server")
	}
	mu.Lock()
	defer mu.Unlock()
	if failed["query"] != 1 || failed["connect"] != 1 || failed["acquire"] != 1 {
		t.Errorf("failed: %v", failed)
	}
}
