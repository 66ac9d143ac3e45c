package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv/servers"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const (
	issuer   = "https://auth.example.org/auth"
	tokenURL = issuer + "/token"
	bucket   = "chaos"
	// The names of the servers at the end of links.
	toRedis, toStore, toPostgres, toAuth = "redis", "store", "postgres", "auth"
)

// system is all that is tested: three servers, the services, and a link for each pair of them.
type system struct {
	opts  options
	dir   string // of everything that the run writes
	links *links
	front *front

	mu       sync.Mutex // a failover replaces a server
	redis    *servers.Redis
	postgres *servers.Postgres
	store    *servers.MinIO
	storing  *objectstest.Proxy // between the links and MinIO: answers for it, or loses its answers

	services []*service
	signers  map[string]*token.Signer // of the clients, by id
	audits   []string                 // audit logs
	loading  sync.Mutex               // held while a load runs
	also     []io.Closer              // servers of a failover, to be ended
	events   *events
}

// clientIDs are the registered clients: their subjects have different grants.
var clientIDs = []string{"app-1", "app-2", "app-3", "few", "ten", "probe"}

// begin starts servers and services, with the data in the folder.
func begin(ctx context.Context, opts options, dir, data string, few []string, log *events) (s *system, err error) {
	s = &system{opts: opts, dir: dir, links: newLinks(), front: newFront(), signers: map[string]*token.Signer{}, events: log}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	if err := s.serve(ctx); err != nil {
		return s, err
	}
	if err := s.load(ctx, data); err != nil {
		return s, err
	}
	if err := s.grant(ctx, few); err != nil {
		return s, err
	}
	if err := s.register(); err != nil {
		return s, err
	}
	if err := s.plan(ctx); err != nil {
		return s, err
	}
	for _, each := range s.services {
		if err := each.start(ctx, opts.bin); err != nil {
			return s, err
		}
	}
	return s, nil
}

// serve starts the three servers. Redis writes a change before it answers; only the machine's crash needs fsync.
func (s *system) serve(ctx context.Context) (err error) {
	if s.redis, err = servers.NewRedis(ctx, filepath.Join(s.dir, "redis"), redisSettings...); err != nil {
		return err
	}
	if s.store, err = servers.NewMinIO(ctx, filepath.Join(s.dir, "minio")); err != nil {
		return err
	}
	if s.storing, err = objectstest.Forward(s.store.Endpoint()); err != nil {
		return err
	}
	s.postgres, err = servers.NewPostgres(ctx, filepath.Join(s.dir, "postgres"))
	return err
}

// A stopped Redis accepts no connections. The proxies go on opening some, and without a place in the queue it takes the
// kernel up to a minute to try again.
var redisSettings = []string{
	"--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction", "--save", "", "--tcp-backlog", "4096",
}

// sluice runs the command line.
func (s *system) sluice(ctx context.Context, args ...string) error {
	said, err := exec.CommandContext(ctx, filepath.Join(s.opts.bin, "sluice"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sluice %s: %w: %s", strings.Join(args[:min(2, len(args))], " "), err, said)
	}
	return nil
}

// load loads the files into the store, past the links: what is loaded is known.
func (s *system) load(ctx context.Context, dir string) error {
	s.mu.Lock()
	database := s.postgres.URL()
	s.mu.Unlock()
	return s.sluice(ctx, "load", "--database", database, dir)
}

// grant gives the subjects their access. few may see these patients only, and ten only its group.
func (s *system) grant(ctx context.Context, few []string) error {
	var b strings.Builder
	for _, id := range clientIDs {
		groups, patients, levels := "all", "all", "[group, patient, system]"
		switch id {
		case "few":
			list, err := json.Marshal(few)
			if err != nil {
				return err
			}
			patients = fmt.Sprintf("{only: %s}", list)
		case "ten":
			groups, levels = "[ten]", "[group]"
		}
		fmt.Fprintf(&b, "- {issuer: %q, subject: %q, types: all, groups: %s, patients: %s, levels: %s}\n",
			issuer, id, groups, patients, levels)
	}
	file := filepath.Join(s.dir, "access.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return s.sluice(ctx, "admin", "grant", "import", "--database", s.postgres.URL(), "--yes",
		"--audit-log", filepath.Join(s.dir, "grants.ndjson"), file)
}

// register writes the file of the clients. Registrations in Redis would be gone with its data.
func (s *system) register() error {
	var b strings.Builder
	b.WriteString("clients:\n")
	for _, id := range clientIDs {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			return err
		}
		if s.signers[id], err = token.NewSigner(key, id); err != nil {
			return err
		}
		public, err := s.signers[id].PublicJWK()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "- {id: %s, scope: system/*.rs, jwks: {\"keys\": [%s]}}\n", id, public)
	}
	return os.WriteFile(filepath.Join(s.dir, "clients.yaml"), []byte(b.String()), 0o600)
}

// plan makes the services, with their links.
func (s *system) plan(ctx context.Context) error {
	auth, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	for _, each := range []struct {
		program string
		many    int
	}{{"auth", 1}, {"api", 2}, {"scheduler", 2}, {"worker", 3}} {
		for i := range each.many {
			made := &service{name: fmt.Sprintf("%s-%d", each.program, i+1), program: each.program, events: s.events}
			if err := s.configure(ctx, made, auth); err != nil {
				return err
			}
			s.services = append(s.services, made)
		}
	}
	_, err = s.links.add("client", toAuth, auth)
	return err
}

// configure makes the links and the environment of a service.
func (s *system) configure(ctx context.Context, made *service, auth string) error {
	redis, err := s.through(made.name, toRedis, s.redis.URL())
	if err != nil {
		return err
	}
	made.env = []string{
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + s.dir, "SLUICE_LOG_LEVEL=debug", "SLUICE_REDIS_URL=" + redis,
	}
	add := func(settings ...string) { made.env = append(made.env, settings...) }
	if made.program != "worker" {
		log := filepath.Join(s.dir, made.name+".audit.ndjson")
		s.audits = append(s.audits, log)
		add("SLUICE_AUDIT_LOG=" + log)
	}
	if made.program == "auth" {
		add("SLUICE_AUTH_ADDR="+auth, "SLUICE_AUTH_TOKEN_URL="+tokenURL, "SLUICE_BASE_URL="+s.front.base(),
			"SLUICE_AUTH_KEY_SECRET=a secret of 32 bytes and some more",
			"SLUICE_AUTH_CLIENTS_FILE="+filepath.Join(s.dir, "clients.yaml"))
		return nil
	}
	store, err := s.through(made.name, toStore, s.storing.Endpoint())
	if err != nil {
		return err
	}
	add("SLUICE_S3_ENDPOINT="+store, "SLUICE_S3_ACCESS_KEY="+s.store.AccessKey(), "SLUICE_S3_SECRET_KEY="+s.store.SecretKey(),
		"SLUICE_S3_BUCKET="+bucket, fmt.Sprint("SLUICE_S3_PART_BYTES=", objects.MinPartSize))
	if made.program != "api" {
		add("SLUICE_RETENTION=" + s.opts.retention.String())
	}
	if s.opts.silence > 0 && made.program == "scheduler" {
		add("SLUICE_UNIT_SILENCE="+s.opts.silence.String(), "SLUICE_RESCUE_EVERY=1s")
	}
	if s.opts.silence > 0 && made.program == "worker" {
		add("SLUICE_UNIT_HEARTBEAT=" + (s.opts.silence / 5).String())
	}
	if made.program == "scheduler" {
		sweep := max(s.opts.retention/4, 3*time.Second).String()
		add("SLUICE_EXPIRE_EVERY=3s", "SLUICE_SWEEP_EVERY="+sweep, "SLUICE_SWEEP_GRACE="+sweep, "SLUICE_RESTORE_GRACE="+sweep)
		return nil
	}
	postgres, err := s.through(made.name, toPostgres, s.postgres.URL())
	if err != nil {
		return err
	}
	add("SLUICE_DIRECTORY_URL=" + postgres)
	if made.program == "worker" {
		add("SLUICE_SOURCE_URL="+postgres, "SLUICE_UNIT_BYTES=300000", "SLUICE_FILE_BYTES=1000000")
		return nil
	}
	return s.configureAPI(ctx, made, auth, add)
}

func (s *system) configureAPI(ctx context.Context, made *service, auth string, add func(...string)) error {
	keys, err := s.links.add(made.name, toAuth, auth)
	if err != nil {
		return err
	}
	issuers := filepath.Join(s.dir, made.name+".issuers.yaml")
	text := fmt.Sprintf("issuers:\n- name: %q\n  audiences: [%q]\n  jwks_url: \"http://%s/auth/jwks\"\n",
		issuer, s.front.base(), keys.address())
	if err := os.WriteFile(issuers, []byte(text), 0o600); err != nil {
		return err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	add("SLUICE_API_ADDR="+address, "SLUICE_BASE_URL="+s.front.base(), "SLUICE_TOKEN_ISSUERS_FILE="+issuers,
		"SLUICE_JOB_LIMIT=100", "SLUICE_STATUS_LIMIT=6000", "SLUICE_KICKOFF_LIMIT=6000", "SLUICE_FINISHED_LIMIT=100000")
	public, err := s.links.add("client", made.name, address)
	if err != nil {
		return err
	}
	s.front.replicas = append(s.front.replicas, public.address())
	return nil
}

// through makes a link to the server at the URL, and returns the URL of the link.
func (s *system) through(from, to, server string) (string, error) {
	at, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	made, err := s.links.add(from, to, at.Host)
	if err != nil {
		return "", err
	}
	return made.rewrite(server)
}

// end stops everything and removes its data.
func (s *system) end() {
	var all sync.WaitGroup
	for _, each := range s.services {
		all.Go(each.kill)
	}
	all.Wait()
	s.links.close()
	s.front.server.CloseClientConnections()
	s.front.server.Close()
	if s.storing != nil {
		s.storing.Close()
	}
	var errs []error
	for _, each := range s.also {
		errs = append(errs, each.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, "chaos: end the servers:", err)
	}
}

// freeAddress returns an address that is free now.
func freeAddress(ctx context.Context) (string, error) {
	port, err := servers.FreePort(ctx)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}
