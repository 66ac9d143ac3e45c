package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

// exportFlags are the flags of sluice export.
type exportFlags struct {
	base, group, token, tokenFile, state string
	clientID, clientKey, tokenURL, scope string
	types                                []string
	timeout                              time.Duration
	parallel                             int
	ig, noProgress, json, insecure       bool
	bulkclient.Options
}

func (a *app) export() *cobra.Command {
	var flags exportFlags
	cmd := &cobra.Command{
		Use:   "export --base URL --group ID --out DIR",
		Short: "Export the data of a group of patients into a folder",
		Long: `Export kicks off a bulk export, waits for it, and downloads its files side by side into a folder. Every file
is checked (digest, compression, number and type of its resources) before it gets its name; manifest.json comes last.

The folder must be empty. If anything interrupts the export, run the same command with --resume: it goes on where the
first one stopped, in the same job and in the middle of a file.

The table on standard output counts what was downloaded; bytes are those without compression.

` + exitHelp,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error { return a.runExport(ctx, flags) }),
	}
	f := cmd.Flags()
	f.StringVar(&flags.base, "base", "", "FHIR base URL of the server (default with --state: that of the server there)")
	f.StringVar(&flags.group, "group", "", "id of the group")
	f.StringVar(&flags.Dir, "out", "", "folder for the files; made when missing")
	f.StringSliceVar(&flags.types, "type", nil, "resource types, separated by commas (default: all that you may export)")
	f.StringVar(&flags.token, "token", "", "bearer token; other users of this machine can see it in the process list")
	f.StringVar(&flags.tokenFile, "token-file", "", "file with the bearer token, read for every request")
	f.StringVar(&flags.state, "state", "", "state folder of a standalone server: sign development tokens as needed")
	f.StringVar(&flags.clientID, "client-id", "", "id of a registered client: fetch tokens from the token service as needed")
	f.StringVar(&flags.clientKey, "client-key", "", "file with the client's private key (JWK): see sluice admin client keygen")
	f.StringVar(&flags.tokenURL, "token-url", "", "the token endpoint (default: what the server's SMART configuration says)")
	f.StringVar(&flags.scope, "scope", "system/*.rs", "scopes to ask the token service for, separated by blanks")
	f.BoolVar(&flags.insecure, "insecure-http", false, "send the token over plain http to another machine, too")
	f.IntVar(&flags.parallel, "parallel", 4, "files downloaded side by side")
	f.DurationVar(&flags.timeout, "timeout", 0, "give up after this time, as 90m (default never)")
	f.BoolVar(&flags.ig, "ig", false, "be a client of the HL7 Bulk Data IG: Prefer: respond-async, Retry-After in s")
	f.BoolVar(&flags.KeepGzip, "keep-gzip", false, "keep the files compressed (.ndjson.gz)")
	f.BoolVar(&flags.Resume, "resume", false, "go on with the unfinished export in the folder")
	f.BoolVar(&flags.CancelOnInterrupt, "cancel-on-interrupt", false, "on Ctrl-C cancel the export and remove its files")
	f.BoolVar(&flags.noProgress, "no-progress", false, "show no progress")
	f.BoolVar(&flags.json, "json", false, "print the result as JSON")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file", "state", "client-id")
	cmd.MarkFlagsRequiredTogether("client-id", "client-key")
	for _, name := range []string{"group", "out"} {
		require(cmd, name)
	}
	return cmd
}

// require marks a flag as required. The flag is one that was just defined.
func require(cmd *cobra.Command, name string) {
	if err := cmd.MarkFlagRequired(name); err != nil {
		panic(err)
	}
}

func (a *app) runExport(ctx context.Context, flags exportFlags) (err error) {
	if !fhir.IsID(flags.group) {
		return usage("--group %q is not a FHIR id", flags.group)
	}
	for _, typ := range flags.types {
		if !fhir.IsType(typ) {
			return usage("--type %q is not a resource type of FHIR R4", typ)
		}
	}
	if flags.Dir == "" {
		return usage("--out is empty")
	}
	tokens, base, err := a.tokens(flags)
	if err != nil {
		return err
	}
	if base == "" {
		return usage("--base is needed")
	}
	if flags.timeout < 0 {
		return usage("--timeout is negative")
	}
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	shown := a.display(flags.noProgress)
	c, err := bulkclient.New(bulkclient.Config{
		Base: base, Tokens: tokens, IG: flags.ig, Parallel: flags.parallel, Observer: shown.Observer, Insecure: flags.insecure,
	})
	if err != nil {
		shown.close()
		if errors.Is(err, bulkclient.ErrInsecure) {
			err = fmt.Errorf("%w (--insecure-http sends it all the same)", err)
		}
		return usageError{err}
	}
	defer c.Close()
	report, err := c.Export(ctx, bulkclient.Request{Group: flags.group, Types: flags.types}, flags.Options)
	shown.close()
	if err != nil {
		return explain(ctx, err, flags)
	}
	for _, problem := range report.Problems {
		a.say("not exported: %s\n", problem)
	}
	if err := a.printReport(report, flags.json); err != nil {
		return err
	}
	if report.Errors.Files > 0 {
		a.say("the export is not complete: %d reports of what is missing are in %s\n", report.Errors.Resources, flags.Dir)
		return errPartial
	}
	return nil
}

// explain adds to an error what to do about it.
func explain(ctx context.Context, err error, flags exportFlags) error {
	switch {
	case errors.Is(err, bulkclient.ErrFolder):
		return fmt.Errorf("%s: %w", flags.Dir, err)
	case errors.Is(ctx.Err(), context.Canceled) && flags.CancelOnInterrupt:
		return fmt.Errorf("interrupted: %w", err)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("interrupted (--resume goes on from here): %w", err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("out of time (--resume goes on from here): %w", err)
	}
	return err
}

// display is an observer and how to end it.
type display struct {
	bulkclient.Observer
	close func()
}

func (a *app) display(silent bool) display {
	switch {
	case silent:
		return display{nil, func() {}}
	case progress.Terminal(a.stderr):
		bars := progress.NewBars(a.stderr)
		return display{bars, bars.Close}
	default:
		return display{progress.NewLines(a.stderr, a.now), func() {}}
	}
}

func (a *app) printReport(report bulkclient.Report, asJSON bool) error {
	if asJSON {
		text, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
		return a.print(string(text) + "\n")
	}
	return a.print(reportTable(report))
}
