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
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

func (a *app) audit() *cobra.Command {
	return parent("audit", "Verify and search the audit log",
		"Verify and search the audit log. The commands read files and need no database.", a.auditVerify(), a.auditShow())
}

func (a *app) auditVerify() *cobra.Command {
	var keyFile string
	var strict bool
	var proof audit.Proof
	cmd := a.withJSON(&cobra.Command{
		Use:   "verify FILE...",
		Short: "Verify that no line of an audit log was altered, removed, added or moved",
		Long: `Verify the hash chains of an audit log, oldest file first ("-" is standard input). The command prints each
chain with its head, the hash of its last line. If a line is wrong, it reports the first problem, prints the chains up
to there and exits with 1.

Lines missing at the end can only be detected with a known head: store the heads in another place, and pass them with
--expect-head. A log that has grown since still contains them. The command names chains that end without the event of a
stop although the same process began another chain later: the process was killed, or lines are missing. With --strict
it then exits with 1.`,
		Args: atLeast("FILE"),
		RunE: a.run(func(_ context.Context, files []string) error {
			if err := completeProof(&proof, keyFile); err != nil {
				return err
			}
			report, err := verifyAudit(proof, files)
			if err != nil {
				return err
			}
			if err := a.show(report, chainRows(report.Chains)); err != nil {
				return err
			}
			unfinished := 0
			for _, c := range report.Chains {
				if c.Unfinished {
					unfinished++
					a.say("chain %s of %s ends without a stop: the process was killed, or lines are missing\n", c.ID, printable(c.Process))
				}
			}
			lines := plural.Of(report.Lines, "line is", "lines are")
			switch {
			case report.Problem != nil:
				return fmt.Errorf("the audit log is invalid: %w", *report.Problem)
			case strict && unfinished > 0:
				return fmt.Errorf("%s without a stop at the end", plural.Of(unfinished, "chain"))
			case a.flags.json:
				return nil
			case len(proof.Key) == 0:
				return a.print(lines + " valid; without a key this detects damage, not forgery\n")
			}
			return a.print(lines + " valid under the key\n")
		}),
	})
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 if a chain ends without a stop and a later one begins")
	cmd.Flags().StringVar(&keyFile, "key-file", "", "file with the key of the log")
	cmd.Flags().StringSliceVar(&proof.Heads, "expect-head", nil, "hash that the log must contain; repeatable")
	cmd.Flags().StringSliceVar(&proof.After, "after", nil,
		"head of omitted older files, after which a chain may start; repeatable")
	return cmd
}

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// completeProof checks the hashes of a proof and reads the key, if there is one.
func completeProof(proof *audit.Proof, keyFile string) error {
	for name, hashes := range map[string][]string{"--expect-head": proof.Heads, "--after": proof.After} {
		for _, hash := range hashes {
			if !hashForm.MatchString(hash) {
				return usage("%s: %q is not a hash of 64 hexadecimal digits", name, hash)
			}
		}
	}
	if keyFile == "" {
		return nil
	}
	content, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("read the key: %w", err)
	}
	proof.Key = []byte(strings.TrimRight(string(content), "\r\n")) // as in the services
	if len(proof.Key) < audit.KeyBytes {
		return fmt.Errorf("--key-file: a key must have at least %d bytes", audit.KeyBytes)
	}
	return nil
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

func chainRows(chains []audit.Chain) []row {
	rows := []row{{"chain", "process", "site", "first", "last", "from", "until", "head"}}
	for _, c := range chains {
		rows = append(rows, row{c.ID, printable(c.Process), printable(c.Site), c.First, c.Last, c.From, c.Until, c.Head})
	}
	return rows
}

// printable replaces control characters: a forged log may contain terminal escape sequences.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
