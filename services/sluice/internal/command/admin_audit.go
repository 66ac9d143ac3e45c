package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/audit"
)

func (a *app) audit() *cobra.Command {
	return family("audit", "Check the audit log", "Audit checks the audit log. It reads files and needs no database.",
		a.auditVerify())
}

// auditFlags say what a log is compared with.
type auditFlags struct {
	adminFlags
	keyFile string
	heads   []string
	after   []string
}

func (a *app) auditVerify() *cobra.Command {
	var flags auditFlags
	cmd := askJSON(&cobra.Command{
		Use:   "verify FILE...",
		Short: "Prove that no line of an audit log was altered, removed, added or moved",
		Long: `Verify reads an audit log, its oldest file first ("-" is standard input), and proves the chain of its lines. It
prints each chain with the hash of its last line, its head, and ends with 0 when all is proven. Otherwise it ends with
1 and says where the first problem is; the chains are printed as far as they are proven.

That lines are missing at the end shows only to who knows of them: note the heads in another place, and give them back
with --expect-head. A log that has grown since still holds them.`,
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
				return fmt.Errorf("the audit log is not proven: %w", *report.Problem)
			}
			return err
		}),
	}, &flags.adminFlags)
	cmd.Flags().StringVar(&flags.keyFile, "key-file", "", "file with the key that the log was written under")
	cmd.Flags().StringSliceVar(&flags.heads, "expect-head", nil, "hash that the log must hold; may repeat")
	cmd.Flags().StringSliceVar(&flags.after, "after", nil,
		"head of older files that are left out, behind which a chain may begin; may repeat")
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
	proof.Key = []byte(strings.TrimRight(string(content), "\r\n")) // as the services read it
	if len(proof.Key) < audit.KeyBytes {
		return audit.Proof{}, fmt.Errorf("--key-file: a key has at least %d bytes", audit.KeyBytes)
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
			c.ID, printable(c.Process), printable(c.Site), strconv.FormatInt(c.First, 10), strconv.FormatInt(c.Last, 10),
			instant(c.From), instant(c.Until), c.Head,
		})
	}
	if err := a.printColumns(rows); err != nil || report.Problem != nil {
		return err
	}
	verdict := "all %d lines are in their chains; without a key that shows damage, not forgery\n"
	if keyed {
		verdict = "all %d lines are proven under the key\n"
	}
	return a.print(fmt.Sprintf(verdict, report.Lines))
}

// printable is the text without what a terminal would take for a command: a forged log may hold anything.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
