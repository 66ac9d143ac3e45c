package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

type exportFlags struct {
	base, group, token, tokenFile, state string
	clientID, clientKey, tokenURL, scope string
	types                                []string
	timeout                              time.Duration
	parallel                             int
	ig, noProgress, insecure             bool
	bulkclient.Options
}

func (a *app) export() *cobra.Command {
	var flags exportFlags
	cmd := &cobra.Command{
		Use:   "export --base URL --group ID --out DIR",
		Short: "Export the data of a group of patients into a folder",
		Long: `Kick off a bulk export, wait for it, and download its files concurrently into a folder. Every file is checked
(digest, compression, number and type of its resources) before it gets its final name; manifest.json is written last.

The folder must be empty. After an interruption run the same command with --resume: it continues the same job, also in
the middle of a file.

The table on standard output counts the downloaded resources; bytes are uncompressed.

` + exitHelp,
		RunE: a.run(func(ctx context.Context, _ []string) error { return a.runExport(ctx, flags) }),
	}
	f := cmd.Flags()
	f.StringVar(&flags.base, "base", "", "FHIR base URL of the server (default with --state: from the state folder)")
	f.StringVar(&flags.group, "group", "", "id of the group")
	f.StringVar(&flags.Dir, "out", "", "folder for the files; created when missing")
	f.StringSliceVar(&flags.types, "type", nil, "resource types, separated by commas (default: all permitted types)")
	f.StringVar(&flags.token, "token", "", "bearer token; other users of this machine can see it in the process list")
	f.StringVar(&flags.tokenFile, "token-file", "", "file with the bearer token; read for every request")
	f.StringVar(&flags.state, "state", "", "state folder of a standalone server: sign development tokens with its issuer")
	f.StringVar(&flags.clientID, "client-id", "", "id of a registered client: fetch tokens from the token endpoint")
	f.StringVar(&flags.clientKey, "client-key", "", "file with the client's private key (JWK): see sluice admin client keygen")
	f.StringVar(&flags.tokenURL, "token-url", "", "the token endpoint (default: from the server's SMART configuration)")
	f.StringVar(&flags.scope, "scope", "system/*.rs", "scopes to request, separated by spaces")
	f.BoolVar(&flags.insecure, "insecure-http", false, "send the token over plain http to another machine as well")
	f.IntVar(&flags.parallel, "parallel", 4, "concurrent downloads")
	f.DurationVar(&flags.timeout, "timeout", 0, "give up after this time, such as 90m (default: never)")
	f.BoolVar(&flags.ig, "ig", false, "use the HL7 Bulk Data IG: Prefer: respond-async, Retry-After in seconds")
	f.BoolVar(&flags.KeepGzip, "keep-gzip", false, "keep the files compressed (.ndjson.gz)")
	f.BoolVar(&flags.Resume, "resume", false, "continue the unfinished export in the folder")
	f.BoolVar(&flags.CancelOnInterrupt, "cancel-on-interrupt", false, "on Ctrl-C cancel the job and remove its files")
	f.BoolVar(&flags.noProgress, "no-progress", false, "show no progress")
	f.BoolVar(&a.flags.json, "json", false, "print the result as JSON")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file", "state", "client-id")
	cmd.MarkFlagsRequiredTogether("client-id", "client-key")
	require(cmd, "group", "out")
	return cmd
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
	tokens, base, err := tokensOf(flags)
	if err != nil {
		return err
	}
	if base == "" {
		return usage("--base is required")
	}
	if flags.timeout < 0 {
		return usage("--timeout is negative")
	}
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	observer, closeObserver := a.observer(flags.noProgress)
	c, err := bulkclient.New(bulkclient.Config{
		Base: base, Tokens: tokens, IG: flags.ig, Parallel: flags.parallel, Observer: observer, InsecureHTTP: flags.insecure,
	})
	if err != nil {
		closeObserver()
		if errors.Is(err, bulkclient.ErrInsecureHTTP) {
			err = fmt.Errorf("%w (--insecure-http allows it)", err)
		}
		return usageError{err}
	}
	defer c.Close()
	report, err := c.Export(ctx, bulkclient.Request{Group: flags.group, Types: flags.types}, flags.Options)
	closeObserver()
	if err != nil {
		return explain(ctx, err, flags)
	}
	for _, problem := range report.Problems {
		a.say("not exported: %s\n", problem)
	}
	if err := a.show(report, reportRows(report)); err != nil {
		return err
	}
	if report.Errors.Files > 0 {
		a.say("the export is incomplete: see the %d OperationOutcomes in %s\n", report.Errors.Resources, flags.Dir)
		return errPartial
	}
	return nil
}

func explain(ctx context.Context, err error, flags exportFlags) error {
	switch {
	case errors.Is(err, bulkclient.ErrFolder):
		return fmt.Errorf("%s: %w", flags.Dir, err)
	case errors.Is(ctx.Err(), context.Canceled) && flags.CancelOnInterrupt:
		return fmt.Errorf("interrupted: %w", err)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("interrupted (continue with --resume): %w", err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("timed out (continue with --resume): %w", err)
	}
	return err
}

// observer returns the observer that shows the progress, and a function that ends it.
func (a *app) observer(silent bool) (bulkclient.Observer, func()) {
	switch {
	case silent:
		return nil, func() {}
	case progress.Terminal(a.stderr):
		bars := progress.NewBars(a.stderr)
		return bars, bars.Close
	default:
		return progress.NewLines(a.stderr, time.Now), func() {}
	}
}

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
