package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/filelock"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/development"
	"github.com/sluice-fhir/sluice/services/adminui"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
	"github.com/sluice-fhir/sluice/services/standalone/internal/embeddeds3"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

const (
	samplePatients = 50
	unitsAtOnce    = 2
)

func serve(ctx context.Context, opts options, stdout, stderr io.Writer) (err error) {
	level := slog.LevelWarn
	if opts.verbose {
		level = slog.LevelInfo
	}
	log := config.Logger(stderr, "standalone", level)
	if err := os.MkdirAll(opts.state, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	unlock, err := lock(opts.state)
	if err != nil {
		return err
	}
	defer unlock()
	start := quickstart{Subject: demoSubject, Scope: demoScope, State: opts.state, command: opts.command}
	if err := start.remove(); err != nil { // of an earlier run, whose server has stopped
		return err
	}

	registry := telemetry.NewRegistry()
	serving, scheme, err := opts.serving(log, registry)
	if err != nil {
		return err
	}
	listener, err := config.Listen(ctx, opts.addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use: choose another with --addr, such as --addr 127.0.0.1:0 for a free port", opts.addr)
	}
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // for a failed start; a running server closes it itself
	local := opts.local(listener.Addr())
	if opts.baseURL == "" {
		opts.baseURL = scheme + "://" + listener.Addr().String() + "/fhir"
	}
	base, err := config.BaseURL(opts.baseURL)
	if err != nil {
		return err
	}
	start.BaseURL = base.String()
	start.plain = base.Scheme == "http" && !config.Loopback(listener.Addr())
	if opts.data == "" {
		if opts.data, err = sample(ctx, opts.state, stderr); err != nil {
			return err
		}
	}
	if local {
		start.Operator = base.Scheme + "://" + base.Host + adminui.Path
	}

	redis, err := startRedis(filepath.Join(opts.state, "jobs.snapshot"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, redis.close(ctx)) }()
	accessKey, secretKey := "standalone", rand.Text()
	s3, err := embeddeds3.Start(ctx, embeddeds3.Config{
		Dir: filepath.Join(opts.state, "objects"), AccessKey: accessKey, SecretKey: secretKey,
		BeforeDelete: redis.save,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s3.Close()) }()

	dependencies := telemetry.NewDependencies(registry)
	jobs, tasks, err := config.Redis{URL: redis.url}.Observed(dependencies).Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	master, err := encryption(opts)
	if err != nil {
		return err
	}
	ring, err := master.Ring(jobs)
	if err != nil {
		return err
	}
	keys, err := master.SigningKeys(jobs)
	if err != nil {
		return err
	}
	if err := keys.Refresh(ctx); err != nil { // the first manifest needs a key
		return err
	}
	var newKey func(export.JobID, export.Owner) []byte // nil: new jobs are not encrypted
	if opts.encrypt {
		if newKey, err = master.NewKey(); err != nil {
			return err
		}
	}
	objects, err := config.Objects{
		Endpoint: s3.Endpoint(), AccessKey: accessKey, SecretKey: secretKey, Bucket: "sluice",
	}.Observed(dependencies).Open(ring.Key)
	if err != nil {
		return err
	}
	if err := objects.EnsureBucket(ctx); err != nil {
		return err
	}
	data := envconfig.Defaults[config.Source]()
	data.Dir, data.BaseURL, data.DataBases = opts.data, start.BaseURL, opts.bases
	source, err := data.Open(ctx, log, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	bases, err := data.Bases()
	if err != nil {
		return err
	}
	groups, err := filedir.OpenGroups(ctx, opts.data, bases, time.Now, log)
	if err != nil {
		return err
	}
	groups.Held = func(ctx context.Context, yield func(string) error) error {
		return source.Patients(ctx, time.Time{}, yield)
	}
	if start.data, err = survey(ctx, opts.data, source, groups); err != nil {
		return err
	}
	events, err := config.Audit{Log: filepath.Join(opts.state, "audit.ndjson")}.Open("standalone", registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	auth, err := openAuth(ctx, opts, base, redis.url, log, registry, events)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, auth.close()) }()
	access, err := openAccess(opts, auth)
	if err != nil {
		return err
	}
	subject, id, err := example(opts.access, start.data.groups)
	switch {
	case err == nil:
		start.Subject, start.Group = subject, id
	case !errors.Is(err, errNoExample):
		return err
	}
	tokens, err := openTokens(opts.state, start.BaseURL, auth)
	if err != nil {
		return err
	}
	defer tokens.Close()

	parts := httpapi.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Tokens: tokens, Groups: groups, Access: access, Keys: keys, Audit: events,
		Registry: registry, NewKey: newKey,
	}
	public, err := httpapi.New(httpapi.Config{
		BaseURL: base, Dialect: httpapi.DialectAuto, Now: time.Now, Logger: log, TokenURL: auth.tokenURL(), ClientSecrets: true,
		Limits: envconfig.Defaults[httpapi.Limits](), DataBases: opts.bases,
	}, parts)
	if err != nil {
		return err
	}
	pipelineConfig := envconfig.Defaults[pipeline.Config]()
	pipelineConfig.Retention = opts.retention
	worker, err := pipeline.New(pipelineConfig, pipeline.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Source: source, Groups: groups, Access: access, Bases: bases,
		Now: time.Now, Logger: log, Registry: registry,
	})
	if err != nil {
		return err
	}
	if _, err := worker.ObserveLeftOut(ctx); err != nil { // for the metric
		return err
	}
	maintenanceConfig := envconfig.Defaults[maintenance.Config]()
	maintenanceConfig.Retention = opts.retention
	maintainer, err := maintenance.New(maintenanceConfig, maintenance.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Audit: events, Now: time.Now, Logger: log, Registry: registry,
	})
	if err != nil {
		return err
	}

	page := adminui.New(adminui.Config{Logger: log}, &ops.Operator{Jobs: jobs, Queue: tasks, Audit: events, Now: time.Now})
	served := auth.beside(public)
	if local {
		served = auth.beside(withPrivate(public, httpapi.Private(parts), page, page.AcceptsHost))
	}

	if err := errors.Join(start.write(), start.print(stdout)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, start.remove()) }()
	return rungroup.Run(ctx,
		*source.Watch,
		config.HTTP("listener", listener, served, serving),
		rungroup.Component{Name: "signing keys of tokens", Run: auth.service.Run},
		rungroup.Component{Name: "signing keys", Run: func(ctx context.Context) error { return keys.Run(ctx, log) }},
		redis.clock(), redis.saving(log),
		rungroup.Component{Name: "operator's page", Run: page.Run},
		rungroup.Component{Name: "passes", Run: maintainer.Run},
		rungroup.Component{Name: "survey", Run: maintainer.Survey},
		rungroup.Component{Name: "tasks", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: redis.url, Concurrency: unitsAtOnce + 1, Express: 1, Drain: time.Second, Logger: log,
			}, queue.Handlers{
				Unit: worker.Handle, Purge: maintainer.Purge, Pass: maintainer.Pass, Rescue: maintainer.Pass,
			})
		}},
	)
}

// lock makes this process the only one that uses the state folder.
func lock(state string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(state, "lock"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := filelock.Lock(file); err != nil {
		return nil, errors.Join(fmt.Errorf("--state %s is used by another process", state), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// encryption returns the master key. It is in the state folder from the first --encrypt on, so that encrypted jobs can be
// read after a restart without the flag.
func encryption(opts options) (master config.Envelope, err error) {
	file := filepath.Join(opts.state, "master.key")
	if _, err := os.Stat(file); err == nil || opts.encrypt {
		key, err := secret(file)
		if err != nil {
			return master, err
		}
		master.Keys = "standalone:" + key
	}
	return master, nil
}

// withPrivate adds /metrics and the operator's page to the listener, and redirects / to the page. It refuses names of other
// servers for these paths: such a name may resolve to this address (DNS rebinding). It is not a ServeMux, which redirects
// unclean paths.
func withPrivate(public, private, page http.Handler, acceptsHost func(string) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		atPage := r.URL.Path == "/" || r.URL.Path+"/" == adminui.Path
		switch {
		case (atPage || r.URL.Path == "/metrics") && !acceptsHost(r.Host):
			http.Error(w, "unknown host name", http.StatusMisdirectedRequest)
		case r.URL.Path == "/metrics":
			private.ServeHTTP(w, r)
		case atPage:
			http.Redirect(w, r, adminui.Path, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, adminui.Path):
			page.ServeHTTP(w, r)
		default:
			public.ServeHTTP(w, r)
		}
	})
}

// sample generates the sample population, once per state folder.
func sample(ctx context.Context, state string, stderr io.Writer) (string, error) {
	dir := filepath.Join(state, "sample")
	if found, err := filepath.Glob(filepath.Join(dir, "*.ndjson")); err != nil || len(found) > 0 {
		return dir, err
	}
	_, err := fmt.Fprintf(stderr, "Generating a sample population of %d synthetic patients in %s ...\n", samplePatients, dir)
	if err != nil {
		return "", err
	}
	if _, err := synth.Generate(ctx, synth.Config{Patients: samplePatients, Seed: 1, Dir: dir}); err != nil {
		return "", fmt.Errorf("generate the sample: %w", err)
	}
	return dir, nil
}

func openAccess(opts options, auth *authService) (directory.Access, error) {
	if opts.access != "" {
		return filedir.OpenAccess(opts.access)
	}
	owners := append(auth.owners(), export.Owner{Issuer: development.IssuerName, Subject: demoSubject})
	return filedir.AllowOnly(owners...), nil
}

// openTokens trusts the development issuer of the state folder and the token service, and no other issuer.
func openTokens(state, audience string, auth *authService) (*token.Verifier, error) {
	issuer, err := development.Open(filepath.Join(state, "issuer"))
	if err != nil {
		return nil, err
	}
	return token.NewVerifier(token.Config{
		Issuers: []token.Issuer{
			{Name: development.IssuerName, Audiences: []string{audience}, JWKSFile: issuer.JWKSFile()},
			auth.issuer(audience),
		},
		HTTPClient: auth.client(),
	})
}
