package command

import (
	"context"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: a.run(func(context.Context, []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return a.print("sluice, unknown version\n")
			}
			parts := []string{"sluice", info.Main.Version}
			for _, setting := range info.Settings {
				switch {
				case setting.Key == "vcs.revision":
					parts = append(parts, setting.Value[:min(len(setting.Value), 12)])
				case setting.Key == "vcs.modified" && setting.Value == "true":
					parts = append(parts, "modified")
				}
			}
			return a.print(strings.Join(append(parts, info.GoVersion), " ") + "\n")
		}),
	}
}
