package config

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Objects configures the object store.
type Objects struct {
	Trust
	Endpoint  string `env:"S3_ENDPOINT,required,notEmpty"`    // the object store, http(s)://host:port
	AccessKey string `env:"S3_ACCESS_KEY,required,notEmpty"`  // access key of the object store
	SecretKey string `env:"S3_SECRET_KEY,required,notEmpty"`  // secret key of the object store
	Bucket    string `env:"S3_BUCKET" envDefault:"sluice"`    // created when it does not exist
	Region    string `env:"S3_REGION" envDefault:"us-east-1"` // region of the bucket
	// server-side encryption, s3 or kms:KEY-ID; a store that does not confirm it is an error
	SSE string `env:"S3_SSE"`
	// bytes of a part of a large file, from 5 MiB; a worker holds one for each unit and two more
	PartBytes int64 `env:"S3_PART_BYTES" envDefault:"16777216"`

	observed *telemetry.Dependencies
}

// Observed returns the section with metrics; calls count as "objects".
func (o Objects) Observed(by *telemetry.Dependencies) Objects {
	o.observed = by
	return o
}

// Validate refuses an unknown server-side encryption, and what Open would refuse.
func (o Objects) Validate() error {
	if err := objects.CheckServerSide(o.SSE); err != nil {
		return fmt.Errorf("SLUICE_S3_SSE: %w", err)
	}
	if o.Endpoint == "" || o.AccessKey == "" || o.SecretKey == "" || !o.readable() {
		return nil // reported by Common.Validate, or as a missing variable
	}
	store, err := o.Open(nil)
	if err != nil {
		return fmt.Errorf("SLUICE_S3_ENDPOINT, SLUICE_S3_BUCKET, SLUICE_S3_PART_BYTES: %w", err)
	}
	store.Close()
	return nil
}

// Open returns the object store. It does not connect. keys may be nil for a service that only lists and deletes.
func (o Objects) Open(keys objects.Keys) (*objects.Store, error) {
	roots, err := o.Roots()
	if err != nil {
		return nil, err
	}
	return objects.Open(objects.Config{
		Endpoint: o.Endpoint, AccessKey: o.AccessKey, SecretKey: o.SecretKey, Bucket: o.Bucket, Region: o.Region,
		ServerSide: o.SSE, PartSize: o.PartBytes, Keys: keys, Roots: roots, Observe: o.observed.Observer("objects"),
	})
}

// Bucket returns the component that creates the bucket if it does not exist. The service is not ready before that.
func Bucket(store *objects.Store, log *slog.Logger) rungroup.Component {
	return rungroup.Component{Name: "bucket", Run: func(ctx context.Context) error {
		if err := retry(ctx, log, "bucket cannot be created yet", store.EnsureBucket); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}}
}
