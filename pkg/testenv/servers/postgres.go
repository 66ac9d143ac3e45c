package servers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const postgresVariable = "SLUICE_TEST_POSTGRES_BIN" // /usr/lib/postgresql/15/bin, of version 14 or later

// Postgres is a PostgreSQL server. Commits outlive Kill, which is an immediate shutdown: it drops every connection, leaves
// the recovery to Start and returns when the backends are gone, too. Unlike after SIGKILL, no shared memory is left in the
// system.
type Postgres struct {
	server
	password string
	settings []string
	sslmode  string
}

// NewPostgres starts a PostgreSQL server with its data in dir, which is created or empty. settings are flags such as "-c",
// "work_mem=8MB". If the caller is root, the server runs as the account postgres or nobody, which has to reach dir.
func NewPostgres(ctx context.Context, dir string, settings ...string) (*Postgres, error) {
	p := &Postgres{server: server{dir: dir}, password: uuid.NewString(), settings: settings, sslmode: "disable"}
	return newPostgres(ctx, p)
}

// NewSecurePostgres starts a PostgreSQL server that accepts TLS connections with the certificate and its key (PEM), and
// plain ones. Its URL has no TLS parameters.
func NewSecurePostgres(ctx context.Context, dir string, certificate, key []byte) (*Postgres, error) {
	p := &Postgres{server: server{dir: dir}, password: uuid.NewString()}
	p.settings = []string{"-c", "ssl=on", "-c", "ssl_cert_file=../tls.crt", "-c", "ssl_key_file=../tls.key"}
	return newPostgres(ctx, p, file{"tls.crt", certificate}, file{"tls.key", key})
}

func newPostgres(ctx context.Context, p *Postgres, more ...file) (*Postgres, error) {
	if err := p.create(ctx); err != nil {
		return nil, err
	}
	err := p.write(append(more, file{"password", []byte(p.password)})...)
	if err == nil {
		err = p.run(ctx, "initdb", "-D", "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile=password",
			"--encoding=UTF8", "--locale=C", "--no-sync")
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if err := p.begin(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// create prepares a server without data.
func (p *Postgres) create(ctx context.Context) error {
	path, err := program(postgresVariable, "postgres")
	if err != nil {
		return err
	}
	if p.account, err = unprivileged(); err != nil {
		return err
	}
	p.name, p.killing = "PostgreSQL", syscall.SIGQUIT
	p.command = func(port int) *exec.Cmd {
		// Only the machine's crash needs fsync. synchronous_commit, which a commit needs to outlive Kill, is on by default.
		command := exec.CommandContext(context.WithoutCancel(ctx), path, "-D", filepath.Join(p.dir, "data"),
			"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-k", "", "-B", "16MB", "-c", "fsync=off", "-c", "wal_keep_size=256MB")
		command.Args = append(command.Args, p.settings...)
		return command
	}
	p.answers = func(ctx context.Context) error { return p.do(ctx, func(*pgx.Conn) error { return nil }) }
	return p.prepare()
}

// URL returns the URL of the default database, with the superuser's password.
func (p *Postgres) URL() string {
	place := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", p.password), Host: p.Addr(), Path: "/postgres"}
	if p.sslmode != "" {
		place.RawQuery = "sslmode=" + p.sslmode
	}
	return place.String()
}

// Exec executes statements as superuser, on a new connection.
func (p *Postgres) Exec(ctx context.Context, sql string) error {
	return p.do(ctx, func(connection *pgx.Conn) error {
		_, err := connection.Exec(ctx, sql)
		return err
	})
}

const clientBackend = "backend_type = 'client backend'"

// Backends returns how many connections clients have, with the one that asks.
func (p *Postgres) Backends(ctx context.Context) (many int, err error) {
	err = p.do(ctx, func(connection *pgx.Conn) error {
		return connection.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE "+clientBackend).Scan(&many)
	})
	return many, err
}

const tooManyConnections = "53300"

// Occupy takes all connections that the server may have, also those of others, until free is called, also after an error.
// Others may get some while it does.
func (p *Postgres) Occupy(ctx context.Context) (free func(context.Context) error, err error) {
	var taken []*pgx.Conn
	var pids []int64
	free = func(ctx context.Context) error {
		var errs []error
		for _, each := range taken {
			errs = append(errs, each.Close(ctx))
		}
		return errors.Join(errs...)
	}
	for ended := false; ; {
		connection, err := pgx.Connect(ctx, p.URL())
		if err == nil {
			taken, pids = append(taken, connection), append(pids, int64(connection.PgConn().PID()))
			continue
		}
		var refusal *pgconn.PgError
		if !errors.As(err, &refusal) || refusal.Code != tooManyConnections || len(taken) == 0 {
			return free, err
		}
		if ended {
			return free, nil
		}
		ended = true
		// Wait until each has ended: a connection that ends later would leave room for another.
		const end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> ALL($1) AND "
		_, err = taken[0].Exec(ctx, end+clientBackend, pids)
		if err != nil {
			return free, err
		}
	}
}

// Replica starts a server with the settings of this one that replicates from it, and returns when it streams. While the
// replica is down, the primary keeps 256 MB of WAL for it. The replica itself commits without waiting for replicas when it
// is promoted.
func (p *Postgres) Replica(ctx context.Context, dir string) (*Postgres, error) {
	replica := &Postgres{server: server{dir: dir}, password: p.password, sslmode: p.sslmode}
	replica.settings = append(slices.Clone(p.settings), "-c", "synchronous_standby_names=")
	if err := replica.create(ctx); err != nil {
		return nil, err
	}
	err := replica.run(ctx, "pg_basebackup", "-d", p.URL(), "-D", "data", "-R", "-X", "stream", "-c", "fast", "--no-sync")
	if err == nil {
		err = replica.begin(ctx)
	}
	if err == nil {
		const streams = "SELECT count(*) > 0 FROM pg_stat_wal_receiver WHERE status = 'streaming'"
		err = replica.awaitTrue(ctx, "replicate", streams)
	}
	if err != nil {
		return nil, errors.Join(err, replica.Close())
	}
	return replica, nil
}

// Promote makes the replica a primary, and returns when it accepts writes. The former primary has to be gone: nothing stops
// it from accepting writes, too.
func (p *Postgres) Promote(ctx context.Context) error {
	if err := p.Exec(ctx, "SELECT pg_promote(false)"); err != nil {
		return err
	}
	return p.awaitTrue(ctx, "become a primary", "SELECT NOT pg_is_in_recovery()")
}

// awaitTrue repeats a query until it returns true.
func (p *Postgres) awaitTrue(ctx context.Context, what, query string) error {
	return p.await(ctx, what, func(ctx context.Context) error {
		return p.do(ctx, func(connection *pgx.Conn) error {
			var is bool
			err := connection.QueryRow(ctx, query).Scan(&is)
			if err == nil && !is {
				return errors.New("not yet")
			}
			return err
		})
	})
}

func (p *Postgres) do(ctx context.Context, call func(*pgx.Conn) error) error {
	connection, err := pgx.Connect(ctx, p.URL())
	if err != nil {
		return err
	}
	return errors.Join(call(connection), connection.Close(ctx))
}

// run runs another program of PostgreSQL, as the server's account.
func (p *Postgres) run(ctx context.Context, name string, args ...string) error {
	path, err := program(postgresVariable, name)
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, path, args...)
	command.Dir, command.SysProcAttr = p.dir, &syscall.SysProcAttr{Credential: p.account}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w; its output:\n%s", name, err, output)
	}
	return nil
}

// unprivileged returns the account for PostgreSQL's programs if the caller is root: they refuse to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	found, err := user.Lookup("postgres")
	if err != nil {
		found, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("an account to run PostgreSQL as: %w", err)
	}
	uid, errUID := strconv.ParseUint(found.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(found.Gid, 10, 32)
	if err := errors.Join(errUID, errGID); err != nil {
		return nil, fmt.Errorf("account %s: %w", found.Username, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
