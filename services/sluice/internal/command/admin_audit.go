package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/audit"
)

func (a *app) audit() *cobra.Command {
	return parent("audit", "Verify the audit log", "Verify the audit log. The command reads files and needs no database.",
		a.auditVerify())
}

// auditFlags are the flags of audit verify.
type auditFlags struct {
	adminFlags
	keyFile string
	heads   []string
	after   []string
}

func (a *app) auditVerify() *cobra.Command {
	var flags auditFlags
	cmd := withJSON(&cobra.Command{
		Use:   "verify FILE...",
		Short: "Verify that no line of an audit log was altered, removed, added or moved",
		Long: `Verify the hash chains of an audit log, oldest file first ("-" is standard input). The command prints each
chain with its head, the hash of its last line. If a line is wrong, it reports the first problem, prints the chains up
to there and exits with 1.

Lines missing at the end can only be detected with a known head: store the heads in another place, and pass them with
--expect-head. A log that has grown since still contains them.`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			proof, err := flags.proof()
			if err != nil {
				return err
			}
			report, err := verifyAudit(proof, args)
			if err != nil {
				return err
			}
			if flags.json {
				err = a.printJSON(report)
			} else {
				err = a.printChains(report, len(proof.Key) > 0)
			}
			if err == nil && report.Problem != nil {
				return fmt.Errorf("the audit log is invalid: %w", *report.Problem)
			}
			return err
		}),
	}, &flags.adminFlags)
	cmd.Flags().StringVar(&flags.keyFile, "key-file", "", "file with the key of the log")
	cmd.Flags().StringSliceVar(&flags.heads, "expect-head", nil, "hash that the log must contain; repeatable")
	cmd.Flags().StringSliceVar(&flags.after, "after", nil,
		"head of omitted older files, after which a chain may start; repeatable")
	return cmd
}

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (f auditFlags) proof() (audit.Proof, error) {
	for name, hashes := range map[string][]string{"--expect-head": f.heads, "--after": f.after} {
		for _, hash := range hashes {
			if !hashForm.MatchString(hash) {
				return audit.Proof{}, usage("%s: %q is not a hash of 64 hexadecimal digits", name, hash)
			}
		}
	}
	proof := audit.Proof{Heads: f.heads, After: f.after}
	if f.keyFile == "" {
		return proof, nil
	}
	content, err := os.ReadFile(f.keyFile)
	if err != nil {
		return audit.Proof{}, fmt.Errorf("read the key: %w", err)
	}
	proof.Key = []byte(strings.TrimRight(string(content), "\r\n")) // as in the services
	if len(proof.Key) < audit.KeyBytes {
		return audit.Proof{}, fmt.Errorf("--key-file: a key must have at least %d bytes", audit.KeyBytes)
	}
	return proof, nil
}

func verifyAudit(proof audit.Proof, files []string) (audit.Report, error) {
	parts := make([]audit.Input, 0, len(files))
	for _, name := range files {
		var from io.Reader = os.Stdin
		if name != "-" {
			file, err := os.Open(name)
			if err != nil {
				return audit.Report{}, err
			}
			defer file.Close()
			from = file
		}
		parts = append(parts, audit.Input{Name: place(name), Reader: from})
	}
	return audit.Verify(proof, parts...)
}

func (a *app) printChains(report audit.Report, keyed bool) error {
	rows := [][]string{{"chain", "process", "site", "first", "last", "from", "until", "head"}}
	for _, c := range report.Chains {
		rows = append(rows, []string{
			c.ID, printable(c.Process), printable(c.Site), decimal(c.First), decimal(c.Last),
			instant(c.From), instant(c.Until), c.Head,
		})
	}
	if err := a.printColumns(rows); err != nil || report.Problem != nil {
		return err
	}
	verdict := "all %d lines are valid; without a key this detects damage, not forgery\n"
	if keyed {
		verdict = "all %d lines are valid under the key\n"
	}
	return a.print(fmt.Sprintf(verdict, report.Lines))
}

// printable replaces control characters: a forged log may contain terminal commands.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
