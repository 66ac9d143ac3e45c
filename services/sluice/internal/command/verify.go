package command

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

func (a *app) verify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify DIR",
		Short: "Check a folder of exported files against its manifest",
		Long: `Read every file in the folder of a finished export and compare it with manifest.json: digest, number and type
of its resources. All differences are reported.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			dir := args[0]
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				return fmt.Errorf("%s is not a folder", dir) // bulkclient.Verify would create it
			}
			report, err := bulkclient.Verify(ctx, dir)
			if err != nil {
				return fmt.Errorf("verify %s: %w", dir, err)
			}
			files := report.Total.Files + report.Deleted.Files + report.Errors.Files
			resources := report.Total.Resources + report.Deleted.Resources + report.Errors.Resources
			return a.print(fmt.Sprintf("%s: %d files with %d resources are unchanged\n", dir, files, resources))
		}),
	}
}
