package config

import (
	"context"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// Bucket is the part of a process that sees to it that the bucket exists. Services start in any order: an object store
// that is not there yet is asked again, and readiness says so meanwhile.
func Bucket(store *objects.Store, log *slog.Logger) rungroup.Component {
	const again = 2 * time.Second
	return rungroup.Component{Name: "bucket", Run: func(ctx context.Context) error {
		for {
			err := store.EnsureBucket(ctx)
			if err == nil {
				<-ctx.Done()
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(again):
				log.Warn("bucket is not there yet", "err", err)
			}
		}
	}}
}
