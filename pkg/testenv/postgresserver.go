package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// PostgresProcess is a PostgreSQL server of one test, which may crash it with Kill. Call its methods in the test's
// goroutine: they fail the test. Commits survive Kill; nothing survives the test.
type PostgresProcess struct {
	t        testing.TB
	dir      string // holds data, the database cluster
	account  *syscall.SysProcAttr
	port     int
	password string
	settings []string        // further flags of the server
	running  *exec.Cmd       // nil: killed
	ended    <-chan struct{} // closed when running has ended
}

// PostgresServer starts a server for this test.
func PostgresServer(t testing.TB) *PostgresProcess {
	t.Helper()
	p := newPostgres(t)
	p.begin()
	return p
}

// newPostgres creates the database cluster of a server.
func newPostgres(t testing.TB) *PostgresProcess {
	t.Helper()
	// Not t.TempDir, whose parent only root can enter when root runs the tests.
	dir, err := os.MkdirTemp("", "sluice-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	p := &PostgresProcess{t: t, dir: dir, account: account(t), password: uuid.NewString()}
	t.Cleanup(p.remove)
	if who := p.account.Credential; who != nil {
		if err := os.Chown(dir, int(who.Uid), int(who.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	p.initialize()
	return p
}

// begin starts the server for the first time, on a port that it finds.
func (p *PostgresProcess) begin() {
	p.t.Helper()
	var err error
	for range 3 { // another process may take the port first
		p.port = freePort(p.t)
		if err = p.start(); err == nil {
			return
		}
	}
	p.t.Fatal(err)
}

// URL returns the URL of the default database. It does not change after Kill and Start.
func (p *PostgresProcess) URL() string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", p.password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), Path: "/postgres", RawQuery: "sslmode=disable",
	}).String()
}

// Kill crashes the server: an immediate shutdown drops every connection and leaves the recovery to Start. It returns when
// the server and its backends are gone. Unlike after SIGKILL, no shared memory is left in the system.
func (p *PostgresProcess) Kill() {
	p.t.Helper()
	if p.running == nil {
		p.t.Fatal("the PostgreSQL server is already killed")
	}
	if err := p.running.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("kill the PostgreSQL server: %v", err)
	}
	<-p.ended // the server kills backends that do not end within 5 s
	p.running = nil
}

// Start starts the killed server again, on the same port and the same data, and returns when it accepts connections.
func (p *PostgresProcess) Start() {
	p.t.Helper()
	if p.running != nil {
		p.t.Fatal("the PostgreSQL server is already running")
	}
	if err := p.start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *PostgresProcess) data() string { return filepath.Join(p.dir, "data") }

func (p *PostgresProcess) initialize() {
	p.t.Helper()
	secret := filepath.Join(p.dir, "password")
	if err := os.WriteFile(secret, []byte(p.password), 0o644); err != nil { // the mode of the folder protects it
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program(p.t, "initdb"), "-D", p.data(), "-U", "postgres", "-A", "scram-sha-256",
		"--pwfile="+secret, "--encoding=UTF8", "--locale=C", "--no-sync")
	command.Dir = p.dir
	command.SysProcAttr = p.account
	if said, err := command.CombinedOutput(); err != nil {
		p.t.Fatalf("initdb: %v; its output:\n%s", err, said)
	}
}

// start returns when the server accepts connections, or has exited.
func (p *PostgresProcess) start() error {
	// Only the machine's crash needs fsync. synchronous_commit, which a commit needs to outlive Kill, is on by default.
	command := exec.CommandContext(context.Background(), program(p.t, "postgres"), "-D", p.data(), "-h", "127.0.0.1",
		"-p", strconv.Itoa(p.port), "-k", "", "-B", "16MB", "-c", "fsync=off")
	command.Args = append(command.Args, p.settings...)
	command.Dir, command.SysProcAttr = p.dir, p.account
	ended, err := startServer(command, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		connection, err := pgx.Connect(ctx, p.URL())
		return err == nil && connection.Close(ctx) == nil
	})
	if ended != nil {
		p.running, p.ended = command, ended
	}
	return err
}

// startServer starts a server and returns when it is ready. The channel is nil when the server did not start; otherwise
// it is closed when the server has ended.
func startServer(command *exec.Cmd, ready func() bool) (<-chan struct{}, error) {
	var said strings.Builder
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait() // usually killed
	}()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(time.Minute); !ready(); {
		select {
		case <-ended:
			return ended, fmt.Errorf("%s has exited; its output:\n%s", filepath.Base(command.Path), said.String())
		case <-deadline:
			return ended, fmt.Errorf("%s did not become ready", filepath.Base(command.Path))
		case <-again.C:
		}
	}
	return ended, nil
}

func (p *PostgresProcess) remove() {
	if p.running != nil {
		p.Kill()
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Error(err)
	}
}

// account returns the process attributes of the programs: they run as the caller, or as an unprivileged account if the
// caller is root, because PostgreSQL refuses to run as root. The server ends with the test's process.
func account(t testing.TB) *syscall.SysProcAttr {
	t.Helper()
	attributes := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return attributes
	}
	found, err := user.Lookup("postgres")
	if err != nil {
		found, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatalf("an account to run PostgreSQL as: %v", err)
	}
	uid, errUID := strconv.ParseUint(found.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(found.Gid, 10, 32)
	if err := errors.Join(errUID, errGID); err != nil {
		t.Fatalf("account %s: %v", found.Username, err)
	}
	attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attributes
}

// program returns the path of one of PostgreSQL's programs.
func program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv(programsVariable)
	if dir == "" {
		t.Fatalf("%s is not set: this test starts a PostgreSQL server; run `make test`", programsVariable)
	}
	return filepath.Join(dir, name)
}

// freePort returns a free port below the ephemeral range, so that no connection takes it while the server is down.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		var config net.ListenConfig
		listener, err := config.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue // taken
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free port")
	return 0
}
