package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
	"github.com/sluice-fhir/sluice/services/config"
)

// settings is the API's configuration, read from SLUICE_* variables.
type settings struct {
	config.Common
	config.Redis
	config.Objects
	config.Envelope
	config.Directory
	config.Audit
	Addr string `env:"API_ADDR" envDefault:":8080"` // the public listener
	// public FHIR base, such as https://host/fhir; every emitted URL starts with it
	BaseURL string `env:"BASE_URL,required,notEmpty"`
	// further URLs, separated by commas; absolute references below them are local, all others are to other servers
	DataBases []string `env:"DATA_BASES"`
	Dialect   string   `env:"API_DIALECT" envDefault:"auto"` // auto, classic or ig (spec 9)
	httpapi.Limits
	// accepted token issuers, YAML: docs/access.md, docs/external-issuers.md
	Issuers   string `env:"TOKEN_ISSUERS_FILE,required,notEmpty"`
	TokenURL  string `env:"AUTH_TOKEN_URL"`          // where clients get tokens, for discovery
	Secrets   bool   `env:"AUTH_CLIENT_SECRET"`      // clients may use secrets, for discovery
	NeedGroup bool   `env:"API_REQUIRE_GROUP_SCOPE"` // a kick-off needs a scope that reads Group

	base *url.URL
}

// Validate returns every problem of the configuration.
func (c *settings) Validate() (err error) {
	c.base, err = config.BaseURL(c.BaseURL)
	if err == nil {
		err = httpapi.CheckBase(c.base)
	}
	if err != nil {
		err = fmt.Errorf("SLUICE_BASE_URL: %w", err)
	}
	if c.TokenURL != "" {
		if _, urlErr := config.BaseURL(c.TokenURL); urlErr != nil {
			err = errors.Join(err, errors.New("SLUICE_AUTH_TOKEN_URL must look like https://host/auth/token"))
		}
	}
	_, basesErr := c.bases()
	err = errors.Join(err, basesErr)
	switch c.Dialect {
	case "auto", "classic", "ig":
	default:
		err = errors.Join(err, errors.New("SLUICE_API_DIALECT must be auto, classic or ig"))
	}
	if _, issuersErr := config.LoadIssuers(c.Issuers); issuersErr != nil {
		err = errors.Join(err, fmt.Errorf("SLUICE_TOKEN_ISSUERS_FILE: %w", issuersErr))
	}
	return errors.Join(err, c.Limits.Validate(), c.Common.Validate(), c.Redis.Validate(), c.Directory.Validate(),
		c.Objects.Validate(), c.Envelope.Validate(), c.Audit.Validate())
}

// bases returns the bases of local references.
func (c *settings) bases() (fhir.Bases, error) {
	return config.References{BaseURL: c.BaseURL, DataBases: c.DataBases}.Bases()
}

// CheckFiles opens the files that a start opens later.
func (c *settings) CheckFiles() error {
	return errors.Join(c.Directory.CheckFiles(), c.Audit.CheckFiles(),
		config.CheckIssuerFiles("SLUICE_TOKEN_ISSUERS_FILE", c.Issuers))
}

func serve(ctx context.Context, cfg settings, stderr io.Writer) (err error) {
	log := config.Logger(stderr, "api", cfg.LogLevel)
	registry := telemetry.NewRegistry()
	listeners, err := cfg.Listeners(log, registry)
	if err != nil {
		return err
	}
	tracing, err := cfg.Tracing(ctx, "api", log, registry)
	if err != nil {
		return err
	}
	defer tracing.Close(ctx)
	dependencies := telemetry.NewDependencies(registry)
	jobs, tasks, err := cfg.Redis.Observed(dependencies).Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	ring, err := cfg.Envelope.Ring(jobs)
	if err != nil {
		return err
	}
	objects, err := cfg.Objects.Observed(dependencies).Open(ring.Key)
	if err != nil {
		return err
	}
	defer objects.Close()
	bases, err := cfg.bases()
	if err != nil {
		return err
	}
	const connections = 16 // a kick-off uses one at a time, for two short queries and two more with `patient`
	directory, err := cfg.Directory.Observed(dependencies).Open(ctx, log, bases, connections)
	if err != nil {
		return err
	}
	defer directory.Close()
	issuers, err := config.LoadIssuers(cfg.Issuers)
	if err != nil {
		return fmt.Errorf("SLUICE_TOKEN_ISSUERS_FILE: %w", err)
	}
	client, err := cfg.Common.Client()
	if err != nil {
		return err
	}
	tokens, err := token.NewVerifier(token.Config{Issuers: issuers, Now: time.Now, HTTPClient: client})
	if err != nil {
		return err
	}
	defer tokens.Close()
	events, err := cfg.Audit.Open("api", registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	newKey, err := cfg.Envelope.NewKey()
	if err != nil {
		return err
	}
	keys, err := cfg.Envelope.SigningKeys(jobs)
	if err != nil {
		return err
	}
	deps := httpapi.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Tokens: tokens, Registry: registry,
		Groups: directory.Groups, Access: directory.Access, Keys: keys, Audit: events, NewKey: newKey, Tracing: tracing,
	}
	handler, err := httpapi.New(httpapi.Config{
		BaseURL: cfg.base, Dialect: cfg.Dialect, Now: time.Now, Logger: log, TokenURL: cfg.TokenURL,
		ClientSecrets: cfg.Secrets, Limits: cfg.Limits, RequireGroupScope: cfg.NeedGroup, DataBases: cfg.DataBases,
	}, deps)
	if err != nil {
		return err
	}
	public, err := config.Listen(ctx, cfg.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = public.Close() }() // if the start fails
	private, err := config.Listen(ctx, cfg.Private)
	if err != nil {
		return err
	}
	defer func() { _ = private.Close() }()
	log.Info("api has started", "public", public.Addr().String(), "private", private.Addr().String(), "base_url", cfg.BaseURL,
		"encrypts", newKey != nil)
	return rungroup.Run(ctx,
		config.HTTP("public listener", public, handler, listeners.Public),
		config.PrivateHTTP(private, httpapi.Private(deps), listeners.Private),
		rungroup.Component{Name: "signing keys", Run: func(ctx context.Context) error { return keys.Run(ctx, log) }},
		config.Readiness("api", deps.Checks(), log),
		config.Bucket(objects, log),
	)
}
