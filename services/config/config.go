// Package config holds the sections of configuration that several processes share, each with what it opens. A process
// puts the sections it needs into one struct; nothing else reads the environment.
package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Common is what every process has.
type Common struct {
	TLS
	Trust
	Trace
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"` // debug, info, warn or error; JSON on stderr
	// /livez, /readyz and /metrics; on the scheduler also /scale and /operator/
	Private string `env:"PRIVATE_ADDR" envDefault:"127.0.0.1:0"`

	secrets map[string]string // files that the configuration was read from, by their variables
}

// SecretFile is called by envconfig.Load for each file that a secret was read from.
func (c *Common) SecretFile(variable, file string) {
	if c.secrets == nil {
		c.secrets = map[string]string{}
	}
	c.secrets[variable] = file
}

// secretFiles are all files with secrets that the process has.
func (c Common) secretFiles() map[string]string {
	all := maps.Clone(c.secrets)
	if all == nil {
		all = map[string]string{}
	}
	for _, from := range []files{c.public(), c.private()} {
		if from.key != "" {
			all[from.keyName] = from.key
		}
	}
	return all
}

// Validate refuses what cannot work.
func (c Common) Validate() error {
	_, err := c.Roots()
	return errors.Join(err, c.TLS.Validate(), c.Trace.Validate())
}

// Redis is the place of the job store and the queue.
type Redis struct {
	Trust
	// redis://user:password@host:port/db or rediss://; Redis needs noeviction and AOF
	URL string `env:"REDIS_URL,required,notEmpty"`

	observed *telemetry.Dependencies
}

// Observed is the section whose calls are measured: the job store's as "redis", the queue's as "queue".
func (r Redis) Observed(by *telemetry.Dependencies) Redis {
	r.observed = by
	return r
}

// Validate refuses a URL that Open would refuse.
func (r Redis) Validate() error {
	if r.URL == "" || !r.readable() {
		return nil // reported by Common.Validate, or as a missing variable
	}
	jobs, tasks, err := r.Open()
	if err != nil {
		return err
	}
	return errors.Join(tasks.Close(), jobs.Close())
}

// Open returns the job store and the queue's client. No connection is made yet.
func (r Redis) Open() (*jobstore.Store, *queue.Client, error) {
	roots, err := r.Roots()
	if err != nil {
		return nil, nil, err
	}
	jobs, err := jobstore.Open(r.URL, nil,
		redisclient.WithRoots(roots), redisclient.WithObserver(r.observed.Observer("redis")))
	if err != nil {
		return nil, nil, fmt.Errorf("SLUICE_REDIS_URL: %w", err)
	}
	tasks, err := queue.Open(r.URL, redisclient.WithRoots(roots), redisclient.WithObserver(r.observed.Observer("queue")))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("SLUICE_REDIS_URL: %w", err), jobs.Close())
	}
	return jobs, tasks, nil
}

// Objects is the place of the object store.
type Objects struct {
	Trust
	Endpoint  string `env:"S3_ENDPOINT,required,notEmpty"`    // the object store, http(s)://host:port
	AccessKey string `env:"S3_ACCESS_KEY,required,notEmpty"`  // access key of the object store
	SecretKey string `env:"S3_SECRET_KEY,required,notEmpty"`  // secret key of the object store
	Bucket    string `env:"S3_BUCKET" envDefault:"sluice"`    // created when it does not exist
	Region    string `env:"S3_REGION" envDefault:"us-east-1"` // region of the bucket
	// server-side encryption, s3 or kms:KEY-ID; a store that does not confirm it is an error
	SSE string `env:"S3_SSE"`

	observed *telemetry.Dependencies
}

// Observed is the section whose calls are measured as "objects".
func (o Objects) Observed(by *telemetry.Dependencies) Objects {
	o.observed = by
	return o
}

// Validate refuses an unknown server-side encryption, and a store that Open would refuse.
func (o Objects) Validate() error {
	if err := objects.CheckServerSide(o.SSE); err != nil {
		return fmt.Errorf("SLUICE_S3_SSE: %w", err)
	}
	if o.Endpoint == "" || o.AccessKey == "" || o.SecretKey == "" || !o.readable() {
		return nil // reported by Common.Validate, or as a missing variable
	}
	store, err := o.Open(nil)
	if err != nil {
		return fmt.Errorf("SLUICE_S3_ENDPOINT, SLUICE_S3_BUCKET: %w", err)
	}
	store.Close()
	return nil
}

// Open returns the object store. No connection is made yet. Who only lists and deletes needs no keys and gives nil.
func (o Objects) Open(keys objects.Keys) (*objects.Store, error) {
	roots, err := o.Roots()
	if err != nil {
		return nil, err
	}
	return objects.Open(objects.Config{
		Endpoint: o.Endpoint, AccessKey: o.AccessKey, SecretKey: o.SecretKey, Bucket: o.Bucket, Region: o.Region,
		ServerSide: o.SSE, Keys: keys, Roots: roots, Observe: o.observed.Observer("objects"),
	})
}

// Directory is the place of groups and grants: a database, or a folder and a file.
type Directory struct {
	Trust
	// postgres://user:password@host:port/database with groups and grants, or GROUPS_DIR and ACCESS_FILE:
	// docs/access.md
	URL        string `env:"DIRECTORY_URL"`
	GroupsDir  string `env:"GROUPS_DIR"`  // folder with Group*.ndjson files
	AccessFile string `env:"ACCESS_FILE"` // grants, YAML: docs/access.md

	observed *telemetry.Dependencies
}

// Observed is the section whose calls are measured, of a database, as "directory".
func (d Directory) Observed(by *telemetry.Dependencies) Directory {
	d.observed = by
	return d
}

// Validate refuses two places, half of one, none, and what is not the URL of one.
func (d Directory) Validate() error {
	err := checkDatabase("SLUICE_DIRECTORY_URL", d.URL)
	if d.URL != "" && d.GroupsDir == "" && d.AccessFile == "" || d.URL == "" && d.GroupsDir != "" && d.AccessFile != "" {
		return err
	}
	return errors.Join(err,
		errors.New("either SLUICE_DIRECTORY_URL must be set, or both SLUICE_GROUPS_DIR and SLUICE_ACCESS_FILE"))
}

// checkDatabase refuses what is not the URL of a PostgreSQL database; no URL at all is none of its business.
func checkDatabase(variable, url string) error {
	if url == "" {
		return nil
	}
	if err := pgdb.CheckURL(url); err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

// Register is an open directory.
type Register struct {
	Groups directory.Groups
	Access directory.Access
	Check  func(context.Context) error // whether both can be read, for readiness
	Close  func()
}

// Open reads which groups there are and who may export what, for a process that asks so many questions at once. To a
// database no connection is made yet.
func (d Directory) Open(ctx context.Context, connections int) (*Register, error) {
	if d.URL != "" {
		roots, err := d.Roots()
		if err != nil {
			return nil, err
		}
		pool, err := pgdir.Open(ctx, pgdb.Config{
			URL: d.URL, Connections: connections, Roots: roots, Observe: d.observed.Observer("directory"),
		})
		if err != nil {
			return nil, fmt.Errorf("SLUICE_DIRECTORY_URL: %w", err)
		}
		groups := pgdir.NewGroups(pool, time.Now)
		return &Register{Groups: groups, Access: pgdir.NewAccess(pool), Check: groups.Check, Close: pool.Close}, nil
	}
	groups, err := filedir.OpenGroups(d.GroupsDir, time.Now)
	if err != nil {
		return nil, err
	}
	access, err := filedir.OpenAccess(d.AccessFile)
	if err != nil {
		return nil, err
	}
	check := func(ctx context.Context) error { return errors.Join(groups.Check(ctx), access.Check(ctx)) }
	return &Register{Groups: groups, Access: access, Check: check, Close: func() {}}, nil
}

// BaseURL parses a public base URL: absolute, http or https, without query, fragment, user or trailing slash.
func BaseURL(text string) (*url.URL, error) {
	base, err := url.Parse(text)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.RawQuery != "" ||
		base.Fragment != "" || base.User != nil {
		return nil, fmt.Errorf("the base URL must look like https://host/fhir")
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return base, nil
}
