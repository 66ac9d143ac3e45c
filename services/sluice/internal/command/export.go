package command

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

// serverFlags name a server and the tokens for it.
type serverFlags struct {
	base, token, tokenFile, state     string
	clientID, clientKey, clientSecret string
	tokenURL, scope                   string
	ig, insecure, anyAudience         bool
}

func (s *serverFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.base, "base", "", "FHIR base URL of the server (default with --state: from the state folder)")
	f.StringVar(&s.token, "token", "", "bearer token; other users of this machine can see it in the process list")
	f.StringVar(&s.tokenFile, "token-file", "", "file with the bearer token; read for every request")
	f.StringVar(&s.state, "state", "", "state folder of a standalone server: sign development tokens with its issuer")
	f.StringVar(&s.clientID, "client-id", "", "id of a registered client: fetch tokens from the token endpoint")
	f.StringVar(&s.clientKey, "client-key", "", "file with the client's private key (JWK): see sluice admin client keygen")
	f.StringVar(&s.clientSecret, "client-secret-file", "", "file with the client's secret, for servers such as BCDA")
	f.StringVar(&s.tokenURL, "token-url", "", "token endpoint (default: from the server's SMART configuration, on its origin)")
	f.StringVar(&s.scope, "scope", "system/*.rs", "scopes to request, separated by spaces")
	f.BoolVar(&s.anyAudience, "any-audience", false,
		"send no resource parameter (RFC 8707) and accept a token whose audience is another server")
	f.BoolVar(&s.insecure, "insecure-http", false, "send the token over plain http to other machines, too")
	f.BoolVar(&s.ig, "ig", false, "use the HL7 Bulk Data IG: Prefer: respond-async, Retry-After in seconds")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file", "state", "client-id")
	cmd.MarkFlagsMutuallyExclusive("client-key", "client-secret-file")
	folders(cmd, "state")
}

type exportFlags struct {
	serverFlags
	requestFlags
	timeout    time.Duration
	parallel   int
	noProgress bool
	bulkclient.Options
}

func (a *app) export() *cobra.Command {
	var flags exportFlags
	cmd := &cobra.Command{
		Use:   "export --base URL --group ID --out DIR",
		Short: "Export the data of a group, of all patients or of everything into a folder",
		Long: `Kick off a bulk export, wait for it, and download its files concurrently into a folder. Every file is checked
(digest, compression, number and type of its resources) before it gets its final name: Patient.ndjson, Patient.2.ndjson.
manifest.json is written last.

The folder must be empty. After an interruption run the same command with --resume: it continues the same job, also in
the middle of a file. --status-url continues a job whose folder is lost, or that another program kicked off.

--since-last DIR brings an export up to date: DIR is not changed, and the folder of --out becomes a copy of it without what
was changed or deleted since, and with what the server sends for it. The folder "changes" in it holds that export. The
flags that say what to export must be those of DIR.

The server may be any server of the HL7 Bulk Data Access IG. What its manifest lacks is printed as a warning.

The table on standard output counts the downloaded resources; sizes are uncompressed. The JSON of --json has job,
statusUrl, folder, transactionTime, request, patients (their number in the request), changes (with --since-last: since,
resources, deletions, removed), outputOrganizedBy (if the server organized the files), types, total, deleted, errors
(files, resources, bytes, seconds), incomplete and withheld (numbers of issues), problems and notes (their texts), and
warnings.

` + exitHelp,
		Example: `  sluice export --state .state --group all --out export
  sluice export --base https://bulk.example.org/fhir --group cohort --type Patient,Condition --out export \
    --client-id research --client-key research.key.json
  sluice export --base https://bulk.example.org/fhir --group cohort --out export --token-file token --resume
  sluice export --base https://bulk.example.org/fhir --level patient --type-filter 'Observation?status=final' \
    --elements id,code,subject,value --out export --token-file token
  sluice export --base https://bulk.example.org/fhir --group cohort --since-last monday --out tuesday --token-file token`,
		RunE: a.run(func(ctx context.Context, _ []string) error { return a.runExport(ctx, flags) }),
	}
	flags.serverFlags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&flags.StatusURL, "status-url", "", "continue the job with this status URL instead of a kick-off")
	f.StringVar(&flags.Dir, "out", "", "folder for the files; created when missing")
	f.StringVar(&flags.Last, "since-last", "",
		"folder of the last export with these flags: export what changed since, and make --out an up-to-date copy")
	f.IntVar(&flags.parallel, "parallel", 4, "concurrent downloads")
	f.Int64Var(&flags.MaxBytes, "max-bytes", 0,
		"give up after this many bytes of files, uncompressed or as received (default: never)")
	f.DurationVar(&flags.timeout, "timeout", 0, "give up after this time, such as 90s, 10m or 2h (default: never)")
	f.BoolVar(&flags.KeepGzip, "keep-gzip", false, "keep the files compressed (.ndjson.gz)")
	f.BoolVar(&flags.Resume, "resume", false, "continue the unfinished export in the folder")
	f.BoolVar(&flags.CancelOnInterrupt, "cancel-on-interrupt", false, "on Ctrl-C cancel the job and remove its files")
	f.BoolVar(&flags.noProgress, "no-progress", false, "show no progress")
	flags.requestFlags.add(cmd)
	require(cmd, "out")
	folders(cmd, "out", "since-last")
	return a.withJSON(cmd)
}

// folders makes the completion of flags offer folders.
func folders(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		defined(cmd.MarkFlagDirname(flag))
	}
}

// completeList completes the last name of a list.
func completeList(names []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before, last := "", typed
		if i := strings.LastIndexByte(typed, ','); i >= 0 {
			before, last = typed[:i+1], typed[i+1:]
		}
		var found []string
		for _, name := range names {
			if strings.HasPrefix(strings.ToLower(name), strings.ToLower(last)) {
				found = append(found, before+name)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func (f *exportFlags) check() error {
	switch {
	case f.Dir == "":
		return usage("--out is empty")
	case f.timeout < 0:
		return usage("--timeout is negative")
	case f.MaxBytes < 0:
		return usage("--max-bytes is negative")
	case f.StatusURL != "":
		return nil
	}
	return f.requestFlags.check()
}

func (a *app) runExport(ctx context.Context, flags exportFlags) (err error) {
	if err := flags.check(); err != nil {
		return err
	}
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	observer, closeObserver := a.observer(flags.noProgress)
	c, err := connect(flags.serverFlags, flags.StatusURL, flags.parallel, observer)
	if err != nil {
		closeObserver()
		return err
	}
	defer c.Close()
	report, err := c.Export(ctx, flags.Request, flags.Options)
	closeObserver()
	if err != nil {
		return a.explain(ctx, err, flags)
	}
	for _, warning := range report.Warnings {
		a.say("warning: %s\n", warning)
	}
	for _, note := range report.Notes {
		a.say("note: %s\n", note)
	}
	for _, problem := range report.Problems {
		a.say("not exported: %s\n", problem)
	}
	if err := a.show(report, reportRows(report)); err != nil {
		return err
	}
	if report.Total.Files+report.Errors.Files == 0 {
		a.say("no data: nothing that you may export matches the request\n")
	}
	if report.Withheld > 0 {
		a.say("%s for information: see the OperationOutcomes in %s\n",
			plural.Of(report.Withheld, "note"), flags.Dir)
	}
	if report.Incomplete > 0 {
		a.say("the export is incomplete: see %s in the OperationOutcomes in %s\n",
			plural.Of(report.Incomplete, "problem"), flags.Dir)
	}
	if changes := report.Changes; changes != nil {
		a.say("up to date since %s: %s new or changed, %s, %s removed from the copy\n", changes.Since,
			plural.Of(changes.Resources, "resource"), plural.Of(changes.Deletions, "deletion"), plural.Of(changes.Removed, "line"))
	}
	a.say("written to %s (export %s, %s)\n", flags.Dir, report.Job, report.StatusURL)
	if report.Incomplete > 0 {
		return errPartial
	}
	return nil
}

// connect returns a client of the server, whose base URL may be that of a job's status URL.
func connect(
	flags serverFlags, statusURL string, parallel int, observer bulkclient.Observer,
) (*bulkclient.Client, error) {
	if statusURL != "" {
		u, err := url.Parse(statusURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			return nil, usage("the status URL is not an http URL without credentials")
		}
		if flags.base == "" && flags.state == "" && flags.clientID == "" {
			flags.base = u.Scheme + "://" + u.Host
		}
	}
	if (flags.clientID == "") != (flags.clientKey+flags.clientSecret == "") {
		return nil, usage("--client-id needs --client-key or --client-secret-file, and they need --client-id")
	}
	tokens, base, err := tokensOf(flags)
	if err != nil {
		return nil, err
	}
	switch {
	case base == "":
		return nil, usage("--base or --state is required")
	case statusURL != "" && tokens != nil && !bulkclient.SameOrigin(base, statusURL):
		return nil, usage("the status URL is not on the origin of the base URL %s, to which the token is sent: "+
			"--base must have the origin of the status URL, and the token must be of that server", withoutSecrets(base))
	}
	c, err := bulkclient.New(bulkclient.Config{
		Base: base, Tokens: tokens, IG: flags.ig, Parallel: parallel, Observer: observer, InsecureHTTP: flags.insecure,
	})
	if errors.Is(err, bulkclient.ErrInsecureHTTP) {
		err = fmt.Errorf("%w (--insecure-http allows it)", err)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// explain adds the way out to an error of an export.
func (a *app) explain(ctx context.Context, err error, flags exportFlags) error {
	again := ", continue with:\n  " + resuming(a.program, a.args)
	switch {
	case errors.Is(err, bulkclient.ErrCancelled):
		return errors.New("interrupted: the export was cancelled at the server, and its files were removed")
	case errors.Is(ctx.Err(), context.Canceled) && !errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: %w%s", err, again)
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted" + again)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("timed out after %s%s", flags.timeout, again)
	}
	if errors.Is(err, bulkclient.ErrLast) {
		return usageError{fmt.Errorf("--since-last %s: %w", flags.Last, err)}
	}
	return advise(err, flags.Dir)
}

// advise adds the flag that allows what was refused.
func advise(err error, dir string) error {
	switch {
	case errors.Is(err, bulkclient.ErrFolder):
		return fmt.Errorf("%s: %w", dir, err)
	case errors.Is(err, bulkclient.ErrNoEndpoint):
		return fmt.Errorf("%w (name it with --token-url; a Sluice server announces it if its API has SLUICE_AUTH_TOKEN_URL)",
			err)
	case errors.Is(err, bulkclient.ErrForeignEndpoint):
		return fmt.Errorf("%w (if it is the right one, name it with --token-url)", err)
	case errors.Is(err, bulkclient.ErrForeignToken):
		return fmt.Errorf("%w (--any-audience sends it all the same)", err)
	case errors.Is(err, bulkclient.ErrTooLarge):
		return fmt.Errorf("%w (--max-bytes)", err)
	}
	return err
}

// resuming returns the command line that continues an export, without its token.
func resuming(program string, args []string) string {
	var words []string
	for i, arg := range append([]string{program}, args...) {
		switch {
		case i > 1 && args[i-2] == "--token":
			arg = "TOKEN"
		case strings.HasPrefix(arg, "--token="):
			arg = "--token=TOKEN"
		}
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool {
			return !strings.ContainsRune("-_./:,=@%+", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		words = append(words, arg)
	}
	if !slices.Contains(args, "--resume") {
		words = append(words, "--resume")
	}
	return strings.Join(words, " ")
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
	var jwks string
	cmd := a.withJSON(&cobra.Command{
		Use:   "verify DIR",
		Short: "Check a folder of exported files against its manifest and the server's signature",
		Long: `Read every file in the folder of a finished export and compare it with manifest.json: digest, number and type
of its resources. If the server signed its manifest, also check the signature, that the files are those of the signed
manifest, and that its numbers of resources add up. No server is asked. All differences are reported, and what could not
be checked.

The key set in the folder, jwks.json, is the server's at the time of the export. Whoever can change the whole folder can
replace it: to check a folder that you got from somebody else, give a key set that you have from the server with --jwks.

The JSON of --json is that of sluice export, as far as the folder has it, with signedBy and unchecked.`,
		Example: `  sluice verify export
  sluice verify --json export
  curl -fsS https://bulk.example.org/fhir/.well-known/jwks.json > keys.json && sluice verify --jwks keys.json export`,
		Args: exactly("DIR"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: a.run(func(ctx context.Context, args []string) error {
			dir := args[0]
			var keys []byte
			if jwks != "" {
				var err error
				if keys, err = os.ReadFile(jwks); err != nil {
					return fmt.Errorf("--jwks: %w", err)
				}
			}
			report, err := bulkclient.Verify(ctx, dir, keys)
			for _, gap := range report.Unchecked {
				a.say("not checked: %s\n", gap)
			}
			if err != nil {
				return fmt.Errorf("verify %s: %w", dir, err)
			}
			if a.flags.json {
				return a.printJSON(verified{Report: report})
			}
			files := report.Total.Files + report.Deleted.Files + report.Errors.Files
			resources := report.Total.Resources + report.Deleted.Resources + report.Errors.Resources
			text := fmt.Sprintf("%s is unchanged: %s, %s", dir, plural.Of(files, "file"), plural.Of(resources, "resource"))
			if report.SignedBy != "" {
				text += ", signed by the key " + report.SignedBy
			}
			return a.print(text + "\n")
		}),
	})
	cmd.Flags().StringVar(&jwks, "jwks", "", "file with the key set (JWKS) to trust, instead of that in the folder")
	return cmd
}

// verified is the JSON of sluice verify: a report without the members that count issues, which verify does not read.
type verified struct {
	bulkclient.Report
	Incomplete *int `json:"incomplete,omitempty"`
	Withheld   *int `json:"withheld,omitempty"`
	Problems   *int `json:"problems,omitempty"`
	Notes      *int `json:"notes,omitempty"`
}

// jobStatus is the JSON of sluice status.
type jobStatus struct {
	Job             string `json:"job"`
	StatusURL       string `json:"statusUrl"`
	State           string `json:"state"`                     // of the server; completed at the end
	Percent         *int   `json:"percent,omitempty"`         // nil when unknown
	TransactionTime string `json:"transactionTime,omitempty"` // of a completed job, as the following
	Files           int    `json:"files"`
	Resources       *int64 `json:"resources,omitempty"` // of the output; nil when the manifest has no counts
	ErrorFiles      int    `json:"errorFiles"`
	More            bool   `json:"more,omitempty"` // the manifest has more pages; the numbers are those of the first
}

func (a *app) status() *cobra.Command {
	return a.onJob("status", "Print the status of an export",
		`Ask the server once for the status of a job. sluice export prints the status URL when it starts.`,
		func(ctx context.Context, c *bulkclient.Client, job bulkclient.Job) error {
			manifest, status, err := c.Poll(ctx, job, 1)
			if err != nil {
				return err
			}
			one := jobStatus{Job: job.ID(), StatusURL: job.StatusURL, State: status.State}
			text := "export " + one.Job + ": " + one.State
			if manifest == nil && status.Percent >= 0 {
				one.Percent = &status.Percent
				text += fmt.Sprintf(", %d %%", status.Percent)
			}
			if manifest != nil {
				one.State, one.TransactionTime = "completed", manifest.TransactionTime
				one.Files, one.ErrorFiles, one.More = len(manifest.Output), len(manifest.Error), manifest.Next != ""
				text += "completed, " + plural.Of(one.Files, "file")
				if resources, counted := countOf(manifest); counted {
					one.Resources = &resources
					text += ", " + plural.Of(resources, "resource")
				}
				if one.ErrorFiles > 0 {
					text += ", " + plural.Of(one.ErrorFiles, "error file")
				}
				if one.More {
					text += ", and more pages of the manifest"
				}
			}
			if a.flags.json {
				return a.printJSON(one)
			}
			return a.print(text + "\n")
		})
}

func countOf(manifest *bulkclient.Manifest) (resources int64, counted bool) {
	for _, item := range manifest.Output {
		if item.Count == nil {
			return 0, false
		}
		resources += *item.Count
	}
	return resources, true
}

func (a *app) cancel() *cobra.Command {
	return a.onJob("cancel", "Cancel an export, or delete a finished one",
		`Cancel a job at the server, or delete a finished one with its files. It is an error if the
job does not exist.`,
		func(ctx context.Context, c *bulkclient.Client, job bulkclient.Job) error {
			if err := c.Cancel(ctx, job); err != nil {
				return err
			}
			if a.flags.json {
				return a.printJSON(map[string]any{"job": job.ID(), "statusUrl": job.StatusURL, "cancelled": true})
			}
			return a.print("export " + job.ID() + " is cancelled\n")
		})
}

// onJob returns a command on the job of a status URL.
func (a *app) onJob(
	name, short, long string, work func(context.Context, *bulkclient.Client, bulkclient.Job) error,
) *cobra.Command {
	var flags serverFlags
	cmd := a.withJSON(&cobra.Command{
		Use:   name + " STATUS_URL",
		Short: short,
		Long:  long,
		Example: `  sluice ` + name + ` --state .state http://127.0.0.1:8080/fhir/exports/yb4usboilbhicio2qlsbfk4jzq
  sluice ` + name + ` --token-file token https://bulk.example.org/fhir/exports/yb4usboilbhicio2qlsbfk4jzq`,
		Args: exactly("STATUS_URL"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			c, err := connect(flags, args[0], 1, nil)
			if err != nil {
				return err
			}
			defer c.Close()
			return advise(work(ctx, c, bulkclient.Job{StatusURL: args[0], IG: flags.ig}), "")
		}),
	})
	flags.add(cmd)
	return cmd
}

func defined(err error) {
	if err != nil {
		panic(err) // the definition of a command is wrong
	}
}
