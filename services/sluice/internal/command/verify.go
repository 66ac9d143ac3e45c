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
		Long: `Verify reads every file in the folder of a finished export and compares it with manifest.json: digest,
number of resources, type of every resource. It names everything that is wrong.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			dir := args[0]
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				return fmt.Errorf("%s is not a folder", dir) // and shall not become one
			}
			report, err := bulkclient.Verify(ctx, dir)
			if err != nil {
				return fmt.Errorf("verify %s: %w", dir, err)
			}
			files := report.Total.Files + report.Deleted.Files + report.Errors.Files
			resources := report.Total.Resources + report.Deleted.Resources + report.Errors.Resources
			return a.print(fmt.Sprintf("%s: %d files with %d resources are as they were exported\n", dir, files, resources))
		}),
	}
}
