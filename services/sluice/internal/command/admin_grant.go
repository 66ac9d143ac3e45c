package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

func (a *app) grant() *cobra.Command {
	return parent("grant", "Manage export grants",
		`Manage export grants (docs/access.md). An owner is the issuer and the subject of a token; an owner without a grant can
export nothing. A change applies to every export that is kicked off or planned afterwards.`,
		a.grantList(), a.grantShow(), a.grantSet(), a.grantImport(),
		a.onGrant(a.withJSON(a.withYes(&cobra.Command{
			Use:   "remove --issuer URL --subject NAME",
			Short: "Remove an owner's grant",
			Long:  "Remove an owner's grant: the owner can export nothing afterwards." + irrevocableHelp,
		})), func(ctx context.Context, grants *pgdir.Access, owner export.Owner) error {
			exists := func(directory.GrantEntry, int, func() (string, error)) error { return nil }
			if err := grants.Entry(ctx, owner, exists); err != nil {
				return ofOwner(owner, err)
			}
			question := fmt.Sprintf("Remove the grant of %s, %s?", printable(owner.Issuer), printable(owner.Subject))
			return a.irrevocable(question, "removal of the grant of owner "+owner.Hash(), func() (string, error) {
				done := a.result("removed the grant of owner "+owner.Hash()+"\n", ownerOutput{owner.Hash()})
				return done, ofOwner(owner, grants.Remove(ctx, owner))
			})
		}))
}

// onGrant completes a command on an owner's grant.
func (a *app) onGrant(
	cmd *cobra.Command, work func(ctx context.Context, grants *pgdir.Access, owner export.Owner) error,
) *cobra.Command {
	var owner export.Owner
	cmd.Flags().StringVar(&owner.Issuer, "issuer", "", "the iss of the owner's tokens")
	cmd.Flags().StringVar(&owner.Subject, "subject", "", "the sub of the owner's tokens")
	require(cmd, "issuer", "subject")
	return a.onDirectory(cmd, func(ctx context.Context, _ *pgdir.Groups, grants *pgdir.Access, _ []string) error {
		for flag, value := range map[string]string{"--issuer": owner.Issuer, "--subject": owner.Subject} {
			if !directory.IsStorable(value) {
				return usage("%s is empty or invalid text", flag)
			}
		}
		return work(ctx, grants, owner)
	})
}

// grantOutput is a grant as JSON.
type grantOutput struct {
	Issuer   string     `json:"issuer"`
	Subject  string     `json:"subject"`
	Owner    string     `json:"owner"` // the digest that logs contain
	Types    listOutput `json:"types"`
	Groups   listOutput `json:"groups"`
	Levels   []string   `json:"levels"`
	Patients listOutput `json:"patients"` // the last one: showPatients
}

// ownerOutput is the output of a change of a grant.
type ownerOutput struct {
	Owner string `json:"owner"` // the digest that logs contain
}

type listOutput struct {
	Kind  string   `json:"kind"` // all, only or except
	Count int      `json:"count"`
	Names []string `json:"names,omitempty"`
}

func (l listOutput) String() string {
	switch {
	case l.Kind == "all":
		return "all"
	case l.Names != nil:
		return l.Kind + ":" + strings.Join(l.Names, ",")
	}
	return l.Kind + " " + strconv.Itoa(l.Count)
}

func listJSON(list directory.NameList) listOutput {
	return listOutput{pgdir.Kind(list.All, len(list.Names)), len(list.Names), list.Sorted().Names}
}

func grantRows(grants ...grantOutput) []row {
	rows := []row{{"issuer", "subject", "owner in logs", "types", "groups", "levels", "patients"}}
	for _, g := range grants {
		levels := strings.Join(g.Levels, ",")
		rows = append(rows, row{g.Issuer, g.Subject, g.Owner, g.Types, g.Groups, levels, g.Patients})
	}
	return rows
}

func (a *app) grantList() *cobra.Command {
	return a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "list",
		Short: "List the grants",
		Long:  `List the grants with the numbers of types, groups and patients. sluice admin grant show has the names.`,
	}, func(ctx context.Context, _ *pgdir.Groups, grants *pgdir.Access, _ []string) error {
		list, err := grants.List(ctx)
		if err != nil {
			return err
		}
		output := []grantOutput{}
		for _, s := range list {
			one := func(c pgdir.Count) listOutput { return listOutput{Kind: c.Kind, Count: c.Names} }
			output = append(output, grantOutput{
				s.Owner.Issuer, s.Owner.Subject, s.Owner.Hash(), one(s.Types), one(s.Groups), s.Levels.Names(), one(s.Patients),
			})
		}
		return a.show(output, grantRows(output...))
	}))
}

func (a *app) grantShow() *cobra.Command {
	var patients bool
	cmd := a.withJSON(a.onGrant(&cobra.Command{
		Use:     "show --issuer URL --subject NAME",
		Short:   "Show an owner's grant",
		Long:    `Show an owner's grant. Patient ids are printed only with --patients.`,
		Example: `  sluice admin grant show --issuer https://issuer.example --subject research-team --json`,
	}, func(ctx context.Context, grants *pgdir.Access, owner export.Owner) error {
		return ofOwner(owner, grants.Entry(ctx, owner,
			func(entry directory.GrantEntry, count int, next func() (string, error)) error {
				output := grantOutput{
					owner.Issuer, owner.Subject, owner.Hash(), listJSON(entry.Types), listJSON(entry.Groups), entry.Levels.Names(),
					listOutput{Kind: pgdir.Kind(entry.Patients.All, count), Count: count},
				}
				if !patients || count == 0 {
					return a.show(output, grantRows(output))
				}
				return a.showPatients(output, next)
			}))
	}))
	cmd.Flags().BoolVar(&patients, "patients", false, "print the patient ids of the grant")
	return cmd
}

// showPatients prints a grant with the ids of its patients as they are read. There may be millions.
func (a *app) showPatients(grant grantOutput, next func() (string, error)) error {
	const mark = "*" // stands for the ids, the last value of both forms
	grant.Patients.Names = []string{mark}
	var frame strings.Builder
	framed := app{stdout: &frame, flags: a.flags}
	if err := framed.show(grant, grantRows(grant)); err != nil {
		return err
	}
	at := strings.LastIndex(frame.String(), mark)
	separator := ","
	if a.flags.json {
		separator = "\",\n      \""
	}
	w := bufio.NewWriter(a.stdout)
	before := frame.String()[:at]
	for {
		id, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		_, _ = w.WriteString(before + id) // Flush returns the error
		before = separator
	}
	_, _ = w.WriteString(frame.String()[at+len(mark):])
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func (a *app) grantSet() *cobra.Command {
	var types, groups, patients string
	var levels []string
	var strict bool
	cmd := a.onGrant(a.withJSON(&cobra.Command{
		Use:   "set --issuer URL --subject NAME --types LIST --groups LIST --patients LIST [--level LEVEL ...]",
		Short: "Set an owner's grant, replacing an existing one",
		Long: `Set an owner's grant, replacing an existing one. A list is one of

  all                 everything
  only:a,b            the listed names; "only:" allows nothing
  except:a,b          everything except the listed names
  only:@FILE          as above, with the names in a file, one per line ("@-" is standard input)
  except:@FILE

A level is group, patient or system. Without --level the owner may export groups only.

` + strings.TrimSpace(strictHelp),
		Example: `  sluice admin grant set --issuer https://issuer.example --subject research-team \
    --types only:Patient,Observation --groups all --patients except:@withdrawn.txt`,
	}), func(ctx context.Context, grants *pgdir.Access, owner export.Owner) (err error) {
		entry := directory.GrantEntry{Owner: owner}
		if entry.Types, err = listed("--types", types, directory.CheckType); err != nil {
			return err
		}
		if entry.Groups, err = listed("--groups", groups, directory.CheckID); err != nil {
			return err
		}
		if len(levels) > 0 {
			if entry.Levels, err = directory.ParseLevels(levels); err != nil {
				return usage("--level: %w", err)
			}
		}
		var ids pgdir.Patients
		entry.Patients.All, ids, err = readNames("--patients", patients, directory.CheckID)
		if err != nil {
			return err
		}
		return a.recorded("grant of owner "+owner.Hash(), func() (string, error) {
			done := a.result("set the grant of owner "+owner.Hash()+"\n", ownerOutput{owner.Hash()})
			return done, grants.Checked(a.reportMissing(strict)).Set(ctx, entry, ids)
		})
	})
	f := cmd.Flags()
	f.StringVar(&types, "types", "", "list of resource types")
	f.StringVar(&groups, "groups", "", "list of group ids")
	f.StringVar(&patients, "patients", "", "list of patient ids")
	f.StringArrayVar(&levels, "level", nil, "level of export: group, patient or system; may be repeated")
	withStrict(cmd, &strict)
	require(cmd, "types", "groups", "patients")
	return cmd
}

// readNames reads the value of a flag: whether the list selects all names but its own, and its names, nil for "all".
func readNames(
	flag, value string, check func(string) error,
) (allBut bool, names iter.Seq2[string, error], err error) {
	kind, text, isList := strings.Cut(value, ":")
	switch {
	case value == "all":
		return true, nil, nil
	case !isList || kind != "only" && kind != "except":
		return false, nil, usage("%s must be all, only:a,b, except:a,b, only:@FILE or except:@FILE", flag)
	}
	given := prepend(nil, nil)
	if file, ok := strings.CutPrefix(text, "@"); ok {
		given = idsIn(file)
	} else if text != "" {
		given = prepend(strings.Split(text, ","), nil)
	}
	allBut = kind == "except"
	return allBut, func(yield func(string, error) bool) {
		n := 0
		for name, err := range validated(given, check, flag) {
			if n++; err != nil {
				err = usageError{err}
			}
			if !yield(name, err) || err != nil {
				return
			}
		}
		// An empty exception list is probably a mistake; "all" grants everything.
		if allBut && n == 0 {
			yield("", usage("%s: except: has no names; use all for everything", flag))
		}
	}, nil
}

// listed reads the value of a flag with few names.
func listed(flag, value string, check func(string) error) (list directory.NameList, err error) {
	allBut, names, err := readNames(flag, value, check)
	if err != nil || names == nil {
		return directory.NameList{All: allBut}, err
	}
	list.All = allBut
	for name, err := range names {
		if err != nil {
			return directory.NameList{}, err
		}
		list.Names = append(list.Names, name)
	}
	return list, nil
}

func (a *app) grantImport() *cobra.Command {
	var strict, dryRun bool
	cmd := a.onDirectory(a.withJSON(a.withYes(&cobra.Command{
		Use:   "import FILE",
		Short: "Replace all grants with those of an access file",
		Long: `Replace all grants. Anyone not listed loses access. FILE is YAML in the format of SLUICE_ACCESS_FILE
(docs/access.md), of at most 16 MiB. Importing the same file again changes nothing. The command shows the number of grants
that it removes, adds and changes, and makes these changes at once.` + strictHelp + irrevocableHelp,
		Example: `  sluice admin grant import --dry-run access.yaml
  sluice admin grant import --yes --audit-log admin-audit.ndjson access.yaml`,
		Args: exactly("FILE"),
	})), func(ctx context.Context, _ *pgdir.Groups, grants *pgdir.Access, args []string) error {
		entries, err := readGrants(args[0])
		if err != nil {
			return err
		}
		changes, err := grants.Checked(a.reportMissing(strict)).Compare(ctx, entries)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%s removed, %d added, %d changed",
			plural.Of(changes.Removed, "grant"), changes.Added, changes.Changed)
		if dryRun {
			return a.print(a.result(text+"; nothing was changed (--dry-run)\n", changes))
		}
		question := ""
		if changes != (pgdir.Changes{}) {
			question = text + ". Continue?"
		}
		what := fmt.Sprintf("replacement of all grants by %d", len(entries))
		return a.irrevocable(question, what, func() (string, error) {
			done := fmt.Sprintf("imported %s: %s\n", plural.Of(len(entries), "grant"), text)
			return a.result(done, changes), grants.Replace(ctx, entries)
		})
	})
	withStrict(cmd, &strict)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

func readGrants(name string) ([]directory.GrantEntry, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the access file: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, filedir.MaxAccess+1))
	if err == nil && len(text) > filedir.MaxAccess {
		err = fmt.Errorf("larger than %d MiB; use grant set for long lists of patients", filedir.MaxAccess>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("read the access file: %w", err)
	}
	entries, err := directory.ParseGrants(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return entries, nil
}

func ofOwner(owner export.Owner, err error) error {
	if errors.Is(err, pgdir.ErrNoGrant) {
		return fmt.Errorf("owner %s: %w", owner.Hash(), err)
	}
	return err
}
