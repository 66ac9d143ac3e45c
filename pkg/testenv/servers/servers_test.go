package servers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"
)

// process is what all servers have.
type process interface {
	Kill() error
	Start(ctx context.Context) error
	Pause() error
	Resume() error
	Close() error
	Log() string
	Running() bool
	Pid() int
	Addr() string
}

// tested is a server with one value in it, which put replaces.
type tested struct {
	process
	put func(ctx context.Context, value string) error
	get func(ctx context.Context) (string, error)
}

// each calls a test with each kind of server.
func each(t *testing.T, test func(t *testing.T, s tested)) {
	t.Helper()
	for name, start := range map[string]func(*testing.T) tested{
		"Redis": func(t *testing.T) tested {
			return testedRedis(startRedis(t, "--appendonly", "yes", "--appendfsync", "always"))
		},
		"MinIO": testedMinIO,
		"PostgreSQL": func(t *testing.T) tested {
			p := startPostgres(t)
			must(t, p.Exec(t.Context(), "CREATE TABLE kept (value text)"))
			return testedPostgres(p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t))
		})
	}
}

func TestDataOutlivesKill(t *testing.T) {
	each(t, func(t *testing.T, s tested) {
		must(t, s.put(t.Context(), "kept"))
		addr, pid := s.Addr(), s.Pid()
		must(t, s.Kill())
		if s.Running() || s.Pid() != 0 || s.Kill() == nil {
			t.Error("a killed server runs")
		}
		if _, err := s.get(t.Context()); err == nil {
			t.Error("a killed server answers")
		}

		must(t, s.Start(t.Context()))
		if s.Addr() != addr || !s.Running() || s.Pid() == pid || s.Pid() == 0 || s.Start(t.Context()) == nil {
			t.Errorf("it is process %d at %s after %d at %s", s.Pid(), s.Addr(), pid, addr)
		}
		if got, err := s.get(t.Context()); got != "kept" || err != nil {
			t.Errorf("after Start: %q (%v)", got, err)
		}
		if s.Log() == "" || strings.Count(s.Log(), "\n") > tailLines {
			t.Errorf("its log:\n%s", s.Log())
		}
	})
}

const tailLines = 50

func TestAPausedServerDoesNotAnswer(t *testing.T) {
	each(t, func(t *testing.T, s tested) {
		must(t, s.put(t.Context(), "kept"))
		must(t, s.Pause())
		const some = 200 * time.Millisecond // a request takes a few
		ctx, cancel := context.WithTimeout(t.Context(), some)
		defer cancel()
		if got, err := s.get(ctx); err == nil || !s.Running() {
			t.Errorf("a paused server answers %q, runs: %v", got, s.Running())
		}
		type answer struct {
			got string
			err error
		}
		answers := make(chan answer, 1)
		go func() {
			got, err := s.get(t.Context())
			answers <- answer{got, err}
		}()
		must(t, s.Resume())
		if a := <-answers; a.got != "kept" || a.err != nil {
			t.Errorf("a resumed server answers %q (%v)", a.got, a.err)
		}
		must(t, s.Pause())
		must(t, s.Kill()) // also works on a paused one
		must(t, s.Start(t.Context()))
		if got, err := s.get(t.Context()); got != "kept" || err != nil {
			t.Errorf("after Start: %q (%v)", got, err)
		}
	})
}

func TestCloseRemovesTheData(t *testing.T) {
	each(t, func(t *testing.T, s tested) {
		must(t, s.Pause())
		for range 2 {
			must(t, s.Close())
		}
		if s.Running() || s.Start(t.Context()) == nil {
			t.Error("a closed server runs")
		}
		var dir string
		switch server := s.process.(type) {
		case *Redis:
			dir = server.dir
		case *MinIO:
			dir = server.dir
		case *Postgres:
			dir = server.dir
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder: %v", err)
		}
	})
}

func TestAServerThatDoesNotStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "redis")
	if r, err := NewRedis(t.Context(), dir, "--maxmemory-policy", "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%v, %v; want an error with the server's output", r, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
	kept := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(kept, nil, 0o600))
	if _, err := NewRedis(t.Context(), filepath.Dir(kept)); err == nil {
		t.Error("a server uses a folder that is not empty")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func TestWipe(t *testing.T) {
	r := startRedis(t, "--appendonly", "yes")
	s := testedRedis(r)
	must(t, s.put(t.Context(), "lost"))
	if r.Wipe() == nil {
		t.Error("a running server is wiped")
	}
	must(t, r.Kill())
	must(t, r.Wipe())
	must(t, r.Start(t.Context()))
	if got, err := s.get(t.Context()); !errors.Is(err, redis.Nil) {
		t.Errorf("%q (%v) after Wipe", got, err)
	}
}

// A Sentinel promotes the replica of a killed primary. The roles outlive the servers.
func TestRedisFailover(t *testing.T) {
	first := startRedis(t, "--appendonly", "yes")
	must(t, testedRedis(first).put(t.Context(), "kept"))
	second, err := first.Replica(t.Context(), filepath.Join(t.TempDir(), "redis"), "--appendonly", "yes")
	must(t, err)
	t.Cleanup(func() { must(t, second.Close()) })
	if got, err := testedRedis(second).get(t.Context()); got != "kept" || err != nil {
		t.Errorf("the replica has %q (%v)", got, err)
	}
	if err := testedRedis(second).put(t.Context(), "x"); err == nil {
		t.Error("the replica accepts a write")
	}
	sentinel, err := NewSentinel(t.Context(), filepath.Join(t.TempDir(), "sentinel"), first, 500*time.Millisecond)
	must(t, err)
	t.Cleanup(func() { must(t, sentinel.Close()) })
	if addr, err := sentinel.Master(t.Context()); addr != first.Addr() || err != nil {
		t.Errorf("the master is at %s (%v), want %s", addr, err, first.Addr())
	}

	must(t, first.Kill())
	eventually(t, "the replica is the master", func() error {
		addr, err := sentinel.Master(t.Context())
		if err == nil && addr != second.Addr() {
			err = errors.New(addr)
		}
		return err
	})
	eventually(t, "the replica accepts a write", func() error { return testedRedis(second).put(t.Context(), "new") })

	must(t, second.Kill())
	must(t, second.Start(t.Context()))
	must(t, testedRedis(second).put(t.Context(), "newer"))
	must(t, sentinel.Kill())
	must(t, sentinel.Start(t.Context()))
	if addr, err := sentinel.Master(t.Context()); addr != second.Addr() || err != nil {
		t.Errorf("the master is at %s (%v), want %s", addr, err, second.Addr())
	}
	must(t, first.Start(t.Context()))
	eventually(t, "the former primary is a replica", func() error {
		got, err := testedRedis(first).get(t.Context())
		if err == nil && got != "newer" {
			err = errors.New(got)
		}
		return err
	})
	must(t, first.Kill())
	must(t, first.Wipe())
	must(t, first.Start(t.Context()))
	eventually(t, "the wiped replica has the data", func() error {
		_, err := testedRedis(first).get(t.Context())
		return err
	})
}

func TestPostgresFailover(t *testing.T) {
	first := startPostgres(t, "-c", "synchronous_standby_names=*")
	second, err := first.Replica(t.Context(), reachable(t))
	must(t, err)
	t.Cleanup(func() { must(t, second.Close()) })
	must(t, first.Exec(t.Context(), "CREATE TABLE kept (value text)")) // waits for the replica
	must(t, testedPostgres(first).put(t.Context(), "kept"))
	if err := second.Exec(t.Context(), "DELETE FROM kept"); err == nil {
		t.Error("the replica accepts a write")
	}
	must(t, first.Kill())
	must(t, second.Promote(t.Context()))
	for range 2 {
		if got, err := testedPostgres(second).get(t.Context()); got != "kept" || err != nil {
			t.Errorf("the replica has %q (%v)", got, err)
		}
		must(t, second.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS further ()"))
		must(t, second.Kill())
		must(t, second.Start(t.Context()))
	}
}

func TestAnOccupiedPostgresRefuses(t *testing.T) {
	p := startPostgres(t)
	other, err := pgx.Connect(t.Context(), p.URL())
	must(t, err)
	defer func() { _ = other.Close(context.Background()) }() // the server has closed it
	free, err := p.Occupy(t.Context())
	must(t, err)
	if err := other.Ping(t.Context()); err == nil {
		t.Error("a connection of before is open")
	}
	if many, err := p.Backends(t.Context()); err == nil {
		t.Errorf("it accepts a connection beside %d", many)
	}
	must(t, free(t.Context()))
	eventually(t, "it accepts connections again", func() error {
		_, err := p.Backends(t.Context())
		return err
	})
}

// Kill with an open transaction and a busy backend.
func TestPostgresCrash(t *testing.T) {
	p := startPostgres(t)
	connect := func() *pgx.Conn {
		connection, err := pgx.Connect(t.Context(), p.URL())
		must(t, err)
		return connection
	}
	first, open, busy := connect(), connect(), connect()
	run := func(connection *pgx.Conn, sql string) {
		t.Helper()
		_, err := connection.Exec(t.Context(), sql)
		must(t, err)
	}
	run(first, "CREATE TABLE kept (id int)")
	run(first, "INSERT INTO kept VALUES (1)")
	run(open, "BEGIN")
	run(open, "INSERT INTO kept VALUES (2)")
	ended := make(chan error, 1)
	go func() {
		_, err := busy.Exec(t.Context(), "DO $$ BEGIN LOOP END LOOP; END $$")
		ended <- err
	}()
	eventually(t, "the busy backend is listed", func() error {
		var active bool
		err := first.QueryRow(t.Context(), "SELECT state = 'active' AND query LIKE 'DO%' FROM pg_stat_activity WHERE pid = $1",
			busy.PgConn().PID()).Scan(&active)
		if err == nil && !active {
			err = errors.New("idle")
		}
		return err
	})
	backends, err := childrenOf(p.Pid())
	must(t, err)
	if !slices.Contains(backends, int(busy.PgConn().PID())) {
		t.Errorf("backend %d is not a child: %v", busy.PgConn().PID(), backends)
	}
	must(t, p.Kill())
	if err := <-ended; err == nil {
		t.Error("the busy backend's query succeeded")
	}
	for _, pid := range backends {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("backend %d after Kill: %v", pid, err)
		}
	}

	must(t, p.Start(t.Context()))
	rows, err := connect().Query(t.Context(), "SELECT id FROM kept")
	must(t, err)
	if ids, err := pgx.CollectRows(rows, pgx.RowTo[int]); err != nil || !slices.Equal(ids, []int{1}) {
		t.Errorf("rows %v (%v), want the committed one alone", ids, err)
	}
}

func startRedis(t *testing.T, settings ...string) *Redis {
	t.Helper()
	r, err := NewRedis(t.Context(), filepath.Join(t.TempDir(), "redis"), settings...)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func startPostgres(t *testing.T, settings ...string) *Postgres {
	t.Helper()
	p, err := NewPostgres(t.Context(), reachable(t), settings...)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

// reachable returns a folder for a server with another account.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sluice-server-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func testedRedis(r *Redis) tested {
	return tested{process: r, put: func(ctx context.Context, value string) error {
		return r.do(func(client *redis.Client) error { return client.Set(ctx, "key", value, 0).Err() })
	}, get: func(ctx context.Context) (got string, err error) {
		err = r.do(func(client *redis.Client) error {
			got, err = client.Get(ctx, "key").Result()
			return err
		})
		return got, err
	}}
}

func testedMinIO(t *testing.T) tested {
	m, err := NewMinIO(t.Context(), filepath.Join(t.TempDir(), "minio"))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	client, err := minio.New(m.Addr(), &minio.Options{
		Creds: credentials.NewStaticV4(m.AccessKey(), m.SecretKey(), ""), MaxRetries: 1,
		Transport: &http.Transport{DisableKeepAlives: true},
	})
	must(t, err)
	must(t, client.MakeBucket(t.Context(), "bucket", minio.MakeBucketOptions{}))
	return tested{process: m, put: func(ctx context.Context, value string) error {
		_, err := client.PutObject(ctx, "bucket", "key", strings.NewReader(value), int64(len(value)), minio.PutObjectOptions{})
		return err
	}, get: func(ctx context.Context) (string, error) {
		object, err := client.GetObject(ctx, "bucket", "key", minio.GetObjectOptions{})
		if err != nil {
			return "", err
		}
		defer object.Close()
		got, err := io.ReadAll(object)
		return string(got), err
	}}
}

// testedPostgres needs the table kept.
func testedPostgres(p *Postgres) tested {
	return tested{process: p, put: func(ctx context.Context, value string) error {
		return p.Exec(ctx, "DELETE FROM kept; INSERT INTO kept VALUES ('"+value+"')")
	}, get: func(ctx context.Context) (got string, err error) {
		err = p.do(ctx, func(connection *pgx.Conn) error {
			return connection.QueryRow(ctx, "SELECT value FROM kept").Scan(&got)
		})
		return got, err
	}}
}

// eventually repeats until there is no error.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(time.Minute); ; {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within a minute: %s: %v", what, err)
		case <-again.C:
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
