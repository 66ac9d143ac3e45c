package command

import (
	"context"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
)

// health is for health checks in images that hold nothing else to ask by, such as that of the object store.
func (a *app) health() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Ask a server how it is",
		Long: `Health asks a server at a URL such as http://127.0.0.1:9000/minio/health/cluster and succeeds when it answers
200. It prints nothing then, and follows no redirect.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, urls []string) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return health.Get(ctx, &http.Transport{DisableKeepAlives: true}, urls[0])
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "give up after this time")
	return cmd
}
