package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

func (a *app) grant() *cobra.Command {
	return parent("grant", "Manage export grants",
		`Manage export grants (docs/access.md). An owner is the issuer and the subject of a token; an owner without a grant can
export nothing. A change applies to every export that is kicked off or planned afterwards.`,
		a.grantList(), a.grantShow(), a.grantSet(), a.grantImport(),
		a.onGrant(&cobra.Command{
			Use:   "remove --issuer URL --subject NAME",
			Short: "Remove an owner's grant",
		}, func(ctx context.Context, grants *pgdir.Access, owner export.Owner) error {
			return a.recorded("removal of the grant of owner "+owner.Hash(), func() (string, error) {
				return "removed the grant of owner " + owner.Hash() + "\n", ofOwner(owner, grants.Remove(ctx, owner))
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
	Patients listOutput `json:"patients"`
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

func listJSON(list directory.NameList, names bool) listOutput {
	output := listOutput{Kind: pgdir.Kind(list), Count: len(list.Names)}
	if names {
		output.Names = slices.Sorted(slices.Values(list.Names))
	}
	return output
}

func grantRows(grants ...grantOutput) []row {
	rows := []row{{"issuer", "subject", "owner in logs", "types", "groups", "patients"}}
	for _, g := range grants {
		rows = append(rows, row{g.Issuer, g.Subject, g.Owner, g.Types, g.Groups, g.Patients})
	}
	return rows
}

func (a *app) grantList() *cobra.Command {
	return a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "list",
		Short: "List the grants, without ids",
	}, func(ctx context.Context, _ *pgdir.Groups, grants *pgdir.Access, _ []string) error {
		list, err := grants.List(ctx)
		if err != nil {
			return err
		}
		output := []grantOutput{}
		for _, s := range list {
			one := func(c pgdir.Count) listOutput { return listOutput{Kind: c.Kind, Count: c.Names} }
			output = append(output, grantOutput{
				s.Owner.Issuer, s.Owner.Subject, s.Owner.Hash(), one(s.Types), one(s.Groups), one(s.Patients),
			})
		}
		return a.show(output, grantRows(output...))
	}))
}

func (a *app) grantShow() *cobra.Command {
	var patients bool
	cmd := a.withJSON(a.onGrant(&cobra.Command{
		Use:   "show --issuer URL --subject NAME",
		Short: "Show an owner's grant",
		Long:  `Show an owner's grant. Patient ids are printed only with --patients.`,
	}, func(ctx context.Context, grants *pgdir.Access, owner export.Owner) error {
		entry, err := grants.Entry(ctx, owner)
		if err != nil {
			return ofOwner(owner, err)
		}
		output := grantOutput{
			owner.Issuer, owner.Subject, owner.Hash(),
			listJSON(entry.Types, true), listJSON(entry.Groups, true), listJSON(entry.Patients, patients),
		}
		return a.show(output, grantRows(output))
	}))
	cmd.Flags().BoolVar(&patients, "patients", false, "print the patient ids of the grant")
	return cmd
}

func (a *app) grantSet() *cobra.Command {
	var types, groups, patients string
	cmd := a.onGrant(&cobra.Command{
		Use:   "set --issuer URL --subject NAME --types LIST --groups LIST --patients LIST",
		Short: "Set an owner's grant, replacing an existing one",
		Long: `Set an owner's grant, replacing an existing one. A list is one of

  all                 everything
  only:a,b            the listed names; "only:" allows nothing
  except:a,b          everything except the listed names
  only:@FILE          as above, with the names in a file, one per line ("@-" is standard input)
  except:@FILE`,
		Example: `  sluice admin grant set --issuer https://issuer.example --subject research-team \
    --types only:Patient,Observation --groups all --patients except:@withdrawn.txt`,
	}, func(ctx context.Context, grants *pgdir.Access, owner export.Owner) (err error) {
		entry := directory.GrantEntry{Owner: owner}
		for _, flag := range []struct {
			name, value, form string
			valid             func(string) bool
			to                *directory.NameList
		}{
			{"--types", types, "a resource type of R4", fhir.IsType, &entry.Types},
			{"--groups", groups, "a FHIR id", fhir.IsID[string], &entry.Groups},
			{"--patients", patients, "a FHIR id", fhir.IsID[string], &entry.Patients},
		} {
			if *flag.to, err = readNames(flag.name, flag.value, flag.form, flag.valid); err != nil {
				return err
			}
		}
		return a.recorded("grant of owner "+owner.Hash(), func() (string, error) {
			return "set the grant of owner " + owner.Hash() + "\n", grants.Set(ctx, entry)
		})
	})
	f := cmd.Flags()
	f.StringVar(&types, "types", "", "resource types")
	f.StringVar(&groups, "groups", "", "ids of groups")
	f.StringVar(&patients, "patients", "", "ids of patients")
	require(cmd, "types", "groups", "patients")
	return cmd
}

func readNames(flag, value, form string, valid func(string) bool) (directory.NameList, error) {
	kind, text, listed := strings.Cut(value, ":")
	switch {
	case value == "all":
		return directory.NameList{All: true}, nil
	case !listed || kind != "only" && kind != "except":
		return directory.NameList{}, usage("%s must be all, only:a,b, except:a,b, only:@FILE or except:@FILE", flag)
	}
	list := directory.NameList{All: kind == "except"}
	names := prepend(nil, nil)
	if file, ok := strings.CutPrefix(text, "@"); ok {
		names = idsIn(file)
	} else if text != "" {
		names = prepend(strings.Split(text, ","), nil)
	}
	for name, err := range validated(names, valid, flag, form) {
		if err != nil {
			return directory.NameList{}, usageError{err}
		}
		list.Names = append(list.Names, name)
	}
	// An empty exception list is probably a mistake; "all" grants everything.
	if list.All && len(list.Names) == 0 {
		return directory.NameList{}, usage("%s: except: has no names; use all for everything", flag)
	}
	return list, nil
}

func (a *app) grantImport() *cobra.Command {
	return a.onDirectory(&cobra.Command{
		Use:   "import FILE",
		Short: "Replace all grants with those of an access file",
		Long: `Replace all grants at once with those of a YAML file in the format of SLUICE_ACCESS_FILE (docs/access.md).
Owners who are not in the file can export nothing afterwards. Importing the same file again changes nothing.`,
		Args: cobra.ExactArgs(1),
	}, func(ctx context.Context, _ *pgdir.Groups, grants *pgdir.Access, args []string) error {
		text, err := os.ReadFile(args[0])
		if err != nil {
			return fmt.Errorf("read the access file: %w", err)
		}
		entries, err := directory.ParseGrants(text)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(args[0]), err)
		}
		return a.recorded(fmt.Sprintf("replacement of all grants by %d", len(entries)), func() (string, error) {
			return fmt.Sprintf("imported %d grants\n", len(entries)), grants.Replace(ctx, entries)
		})
	})
}

func ofOwner(owner export.Owner, err error) error {
	if errors.Is(err, pgdir.ErrNoGrant) {
		return fmt.Errorf("owner %s: %w", owner.Hash(), err)
	}
	return err
}
