package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/keyring"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/services/auth/clients"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
	"github.com/sluice-fhir/sluice/services/config"
)

// settings is the token service's configuration, read from SLUICE_* variables.
type settings struct {
	config.Common
	config.Redis
	config.Audit
	// the public listener of the token service: docs/auth.md
	Addr string `env:"AUTH_ADDR" envDefault:":8081"`
	// public URL of the token endpoint, such as https://host/auth/token
	TokenURL string `env:"AUTH_TOKEN_URL,required,notEmpty"`
	// public FHIR base, the audience of the tokens
	BaseURL string `env:"BASE_URL,required,notEmpty"`
	// secret, 32 bytes or more; wraps the signing keys in Redis
	Secret string `env:"AUTH_KEY_SECRET,required,notEmpty"`
	// the previous secret, while it is being replaced
	Previous string `env:"AUTH_KEY_SECRET_PREVIOUS"`
	authstore.Schedule
	// lifetime of an access token, 10 s to 5 min
	Life time.Duration `env:"AUTH_TOKEN_LIFE" envDefault:"5m"`
	// registered clients, YAML, in addition to those in Redis: docs/auth.md
	Clients string `env:"AUTH_CLIENTS_FILE"`
	// clients that are registered with a secret may use it
	Secrets bool `env:"AUTH_CLIENT_SECRET" envDefault:"false"`
	// assertions may be used again; for conformance suites only
	Replay bool `env:"AUTH_ASSERTION_REPLAY" envDefault:"false"`
	authstore.Limits
	// networks whose X-Forwarded-For is trusted, such as 10.0.0.0/8,fd00::/8
	Proxies []netip.Prefix `env:"AUTH_TRUSTED_PROXIES" envSeparator:","`

	base *url.URL
}

// Validate returns every problem in one error.
func (c *settings) Validate() (err error) {
	var problems []error
	add := func(variable string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("SLUICE_%s: %w", variable, err))
		}
	}
	c.base, err = config.BaseURL(c.BaseURL)
	add("BASE_URL", err)
	add("AUTH_TOKEN_URL", checkTokenURL(c.TokenURL))
	add("AUTH_KEY_SECRET", keyring.CheckSecret(c.Secret))
	if c.Previous != "" {
		add("AUTH_KEY_SECRET_PREVIOUS", keyring.CheckSecret(c.Previous))
	}
	problems = append(problems, c.Schedule.Check())
	if c.Clients != "" {
		_, err := clients.OpenFile(c.Clients)
		add("AUTH_CLIENTS_FILE", err)
	}
	if c.Life < 10*time.Second || c.Life > 5*time.Minute {
		add("AUTH_TOKEN_LIFE", errors.New("must be between 10s and 5m"))
	}
	problems = append(problems, c.Limits.Check())
	return errors.Join(append(problems, c.Common.Validate(), c.Redis.Validate(), c.Audit.Validate())...)
}

// checkTokenURL requires https, because anyone who reads a client secret in transit can use it.
func checkTokenURL(text string) error {
	if _, err := tokenapi.Issuer(text); err != nil {
		return err
	}
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("not a URL")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return errors.New("must be https, or http on loopback")
	}
	return nil
}

func serve(ctx context.Context, cfg settings, stderr io.Writer) (err error) {
	log := config.Logger(stderr, "auth", cfg.LogLevel)
	registry := telemetry.NewRegistry()
	listeners, err := cfg.Listeners(log, registry)
	if err != nil {
		return err
	}
	events, err := cfg.Audit.Open("auth", registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	roots, err := cfg.Redis.Roots()
	if err != nil {
		return err
	}
	store, err := authstore.Open(cfg.Redis.URL, roots, nil)
	if err != nil {
		return fmt.Errorf("SLUICE_REDIS_URL: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store.Observe(telemetry.NewDependencies(registry).Observer("redis"))
	var previous []string
	if cfg.Previous != "" {
		previous = append(previous, cfg.Previous)
	}
	keys, err := store.Keys(cfg.Schedule, cfg.Secret, previous...)
	if err != nil {
		return err
	}
	var file *clients.File
	if cfg.Clients != "" {
		if file, err = clients.OpenFile(cfg.Clients); err != nil {
			return err
		}
	}
	client, err := cfg.Common.Client()
	if err != nil {
		return err
	}
	service, err := tokenapi.New(tokenapi.Config{
		TokenURL: cfg.TokenURL, Audience: cfg.base.String(), Lifetime: cfg.Life, ClientSecrets: cfg.Secrets,
		AllowReplay: cfg.Replay, Limits: cfg.Limits, Proxies: cfg.Proxies, Now: time.Now, Logger: log, HTTPClient: client,
	}, tokenapi.Deps{
		Store: store, Keys: keys, Clients: clients.New(file, store), Audit: events, Registry: registry,
	})
	if err != nil {
		return err
	}
	defer service.Close()
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
	if cfg.Replay {
		log.Warn("used assertions are accepted (SLUICE_AUTH_ASSERTION_REPLAY): for test suites only")
	}
	log.Info("auth has started", "public", public.Addr().String(), "private", private.Addr().String(),
		"token_url", cfg.TokenURL)
	return rungroup.Run(ctx,
		config.HTTP("public listener", public, withProbes(service), listeners.Public),
		config.PrivateHTTP(private, health.Handler(service.Checks(), registry), listeners.Private),
		config.Readiness("auth", service.Checks(), log),
		rungroup.Component{Name: "signing keys", Run: service.Run},
	)
}

// withProbes adds the probes to the public listener, as on the API's.
func withProbes(service *tokenapi.Service) http.Handler {
	probes := health.Probes(service.Checks(), time.Now)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" || r.URL.Path == "/readyz" {
			probes.ServeHTTP(w, r)
			return
		}
		service.ServeHTTP(w, r)
	})
}
