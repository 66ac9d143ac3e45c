package command

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

func (a *app) synth() *cobra.Command {
	cfg := synth.Config{}
	cmd := &cobra.Command{
		Use:   "synth --patients N --out DIR",
		Short: "Invent a population for tests and demonstrations",
		Long: `Synth invents a FHIR R4 population and writes one NDJSON file per resource type. No person in it exists.
The same seed gives the same population, byte by byte.`,
		Args: cobra.NoArgs,
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
			return a.print(synthTable(summary))
		}),
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Patients, "patients", 0, "number of patients")
	f.Uint64Var(&cfg.Seed, "seed", 1, "chooses the population")
	f.StringVar(&cfg.Dir, "out", "", "folder for the files; made when missing")
	for _, name := range []string{"patients", "out"} {
		require(cmd, name)
	}
	return cmd
}

func synthTable(summary synth.Summary) string {
	rows := [][]string{{"type", "resources"}}
	for _, typ := range slices.Sorted(maps.Keys(summary.Types)) {
		rows = append(rows, []string{typ, strconv.FormatInt(summary.Types[typ], 10)})
	}
	rows = append(rows, []string{"total", strconv.FormatInt(summary.Resources, 10)})
	return table(rows) + strconv.Itoa(summary.Files) + " files, " + progress.Size(summary.Bytes) +
		"; groups: " + strings.Join(summary.Groups, " ") + "\n"
}
