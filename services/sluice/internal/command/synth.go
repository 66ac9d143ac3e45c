package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

func (a *app) synth() *cobra.Command {
	cfg := synth.Config{}
	cmd := &cobra.Command{
		Use:   "synth --patients N --out DIR",
		Short: "Generate a synthetic population for tests and demonstrations",
		Long: `Generate a synthetic FHIR R4 population and write one NDJSON file per resource type. No person in it exists.
The same seed gives the same files, byte for byte.`,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if cfg.Patients < 1 {
				return usage("--patients must be at least 1")
			}
			count := progress.NewCount(a.stderr, "patients", cfg.Patients, a.now)
			cfg.Progress = count.Set
			summary, err := synth.Generate(ctx, cfg)
			count.Close()
			if err != nil {
				return err
			}
			rows, _ := countRows(summary.Types)
			if err := a.printColumns(rows); err != nil {
				return err
			}
			return a.print(fmt.Sprintf("%d files, %s; groups: %s\n",
				summary.Files, progress.Size(summary.Bytes), strings.Join(summary.Groups, " ")))
		}),
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Patients, "patients", 0, "number of patients")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed of the population")
	f.StringVar(&cfg.Dir, "out", "", "folder for the files; created when missing")
	require(cmd, "patients", "out")
	return cmd
}
