package command

import (
	"context"
	"errors"
	"fmt"
	"iter"
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

func (a *app) grant(flags *adminFlags) *cobra.Command {
	return family("grant", "Look after who may export what",
		`Grant looks after who may export what. An owner is the issuer and the subject of a token; one without a grant may
export nothing. A change counts for every export that is kicked off or planned afterwards; see docs/access.md.`,
		a.grantList(flags), a.grantShow(flags), a.grantSet(flags), a.grantRemove(flags), a.grantImport(flags))
}

// ownerFlags name an owner.
type ownerFlags struct{ issuer, subject string }

func (o *ownerFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&o.issuer, "issuer", "", "the iss of the owner's tokens")
	cmd.Flags().StringVar(&o.subject, "subject", "", "the sub of the owner's tokens")
	require(cmd, "issuer")
	require(cmd, "subject")
	return cmd
}

func (o *ownerFlags) owner() (export.Owner, error) {
	for flag, value := range map[string]string{"--issuer": o.issuer, "--subject": o.subject} {
		if !directory.IsStorable(value) {
			return export.Owner{}, usage("%s is empty or not valid text", flag)
		}
	}
	return export.Owner{Issuer: o.issuer, Subject: o.subject}, nil
}

// grantOutput is a grant as JSON.
type grantOutput struct {
	Issuer   string     `json:"issuer"`
	Subject  string     `json:"subject"`
	Owner    string     `json:"owner"` // as logs name it
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

func summaryJSON(s pgdir.Summary) grantOutput {
	list := func(c pgdir.Count) listOutput { return listOutput{Kind: c.Kind, Count: c.Names} }
	return grantOutput{
		Issuer: s.Owner.Issuer, Subject: s.Owner.Subject, Owner: s.Owner.Hash(),
		Types: list(s.Types), Groups: list(s.Groups), Patients: list(s.Patients),
	}
}

func listJSON(list directory.NameList, names bool) listOutput {
	output := listOutput{Kind: "only", Count: len(list.Names)}
	if list.All {
		output.Kind = "except"
		if len(list.Names) == 0 {
			output.Kind = "all"
		}
	}
	if names {
		output.Names = slices.Sorted(slices.Values(list.Names))
	}
	return output
}

func grantRow(g grantOutput) []string {
	return []string{g.Issuer, g.Subject, g.Owner, g.Types.String(), g.Groups.String(), g.Patients.String()}
}

var grantHeading = []string{"issuer", "subject", "owner in logs", "types", "groups", "patients"}

func (a *app) grantList(flags *adminFlags) *cobra.Command {
	return askJSON(&cobra.Command{
		Use:   "list",
		Short: "List the grants, without what they name",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.directory(ctx, flags, func(_ *pgdir.Groups, access *pgdir.Access) error {
				list, err := access.List(ctx)
				if err != nil {
					return err
				}
				output, rows := []grantOutput{}, [][]string{grantHeading}
				for _, summary := range list {
					one := summaryJSON(summary)
					output, rows = append(output, one), append(rows, grantRow(one))
				}
				if flags.json {
					return a.printJSON(output)
				}
				return a.printColumns(rows)
			})
		}),
	}, flags)
}

func (a *app) grantShow(flags *adminFlags) *cobra.Command {
	var who ownerFlags
	var patients bool
	cmd := askJSON(who.add(&cobra.Command{
		Use:   "show --issuer URL --subject NAME",
		Short: "Show an owner's grant",
		Long:  `Show shows an owner's grant. The ids of patients are printed with --patients only.`,
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			owner, err := who.owner()
			if err != nil {
				return err
			}
			return a.directory(ctx, flags, func(_ *pgdir.Groups, access *pgdir.Access) error {
				entry, err := access.Entry(ctx, owner)
				if err != nil {
					return ofOwner(owner, err)
				}
				output := grantOutput{
					Issuer: owner.Issuer, Subject: owner.Subject, Owner: owner.Hash(), Types: listJSON(entry.Types, true),
					Groups: listJSON(entry.Groups, true), Patients: listJSON(entry.Patients, patients),
				}
				if flags.json {
					return a.printJSON(output)
				}
				return a.printColumns([][]string{grantHeading, grantRow(output)})
			})
		}),
	}), flags)
	cmd.Flags().BoolVar(&patients, "patients", false, "print the ids of the patients that the grant names")
	return cmd
}

func (a *app) grantSet(flags *adminFlags) *cobra.Command {
	var who ownerFlags
	var types, groups, patients string
	cmd := who.add(&cobra.Command{
		Use:   "set --issuer URL --subject NAME --types LIST --groups LIST --patients LIST",
		Short: "Give an owner a grant, in place of the one that is there",
		Long: `Set gives an owner a grant, in place of the one that is there. A list is one of

  all                 everything
  only:a,b            what is named; "only:" allows nothing
  except:a,b          everything but what is named
  only:@FILE          as only: and except:, with the names in a file, one a line ("@-" is standard input)
  except:@FILE`,
		Example: `  sluice admin grant set --issuer https://issuer.example --subject research-team \
    --types only:Patient,Observation --groups all --patients except:@withdrawn.txt`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			owner, err := who.owner()
			if err != nil {
				return err
			}
			entry := directory.GrantEntry{Owner: owner}
			for _, flag := range []struct {
				name, value, form string
				holds             func(string) bool
				to                *directory.NameList
			}{
				{"--types", types, "a resource type of R4", fhir.IsType, &entry.Types},
				{"--groups", groups, "a FHIR id", fhir.IsID[string], &entry.Groups},
				{"--patients", patients, "a FHIR id", fhir.IsID[string], &entry.Patients},
			} {
				if *flag.to, err = readNames(flag.name, flag.value, flag.form, flag.holds); err != nil {
					return err
				}
			}
			return a.directory(ctx, flags, func(_ *pgdir.Groups, access *pgdir.Access) error {
				err := recorded(flags, "grant of owner "+owner.Hash(), func() error { return access.Set(ctx, entry) })
				if err != nil {
					return err
				}
				return a.print("set the grant of owner " + owner.Hash() + "\n")
			})
		}),
	})
	f := cmd.Flags()
	f.StringVar(&types, "types", "", "resource types")
	f.StringVar(&groups, "groups", "", "ids of groups")
	f.StringVar(&patients, "patients", "", "ids of patients")
	for _, name := range []string{"types", "groups", "patients"} {
		require(cmd, name)
	}
	return cmd
}

// readNames reads a list as the flag spells it.
func readNames(flag, value, form string, holds func(string) bool) (directory.NameList, error) {
	kind, names, listed := strings.Cut(value, ":")
	switch {
	case value == "all":
		return directory.NameList{All: true}, nil
	case !listed || kind != "only" && kind != "except":
		return directory.NameList{}, usage("%s must be all, only:a,b, except:a,b, only:@FILE or except:@FILE", flag)
	}
	list := directory.NameList{All: kind == "except"}
	var from iter.Seq2[string, error]
	if file, ok := strings.CutPrefix(names, "@"); ok {
		from = lines(file)
	} else if names != "" {
		from = func(yield func(string, error) bool) {
			for name := range strings.SplitSeq(names, ",") {
				if !yield(name, nil) {
					return
				}
			}
		}
	}
	if from != nil {
		for name, err := range checked(from, holds, flag, form) {
			if err != nil {
				return directory.NameList{}, usageError{err}
			}
			list.Names = append(list.Names, name)
		}
	}
	// All but nobody is what a lost list looks like; who means everything says all.
	if list.All && len(list.Names) == 0 {
		return directory.NameList{}, usage("%s: except: names nothing; everything is written all", flag)
	}
	return list, nil
}

func (a *app) grantRemove(flags *adminFlags) *cobra.Command {
	var who ownerFlags
	return who.add(&cobra.Command{
		Use:   "remove --issuer URL --subject NAME",
		Short: "Remove an owner's grant: the owner may export nothing",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			owner, err := who.owner()
			if err != nil {
				return err
			}
			return a.directory(ctx, flags, func(_ *pgdir.Groups, access *pgdir.Access) error {
				what := "removal of the grant of owner " + owner.Hash()
				if err := recorded(flags, what, func() error { return access.Remove(ctx, owner) }); err != nil {
					return ofOwner(owner, err)
				}
				return a.print("removed the grant of owner " + owner.Hash() + "\n")
			})
		}),
	})
}

func (a *app) grantImport(flags *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Replace all grants with those of an access file",
		Long: `Import takes a YAML file as SLUICE_ACCESS_FILE names one (docs/access.md) and makes its entries all grants that
there are, at once: who does not stand in the file may export nothing afterwards. Importing the same file again
changes nothing.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the access file: %w", err)
			}
			entries, err := directory.ParseGrants(text)
			if err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(args[0]), err)
			}
			return a.directory(ctx, flags, func(_ *pgdir.Groups, access *pgdir.Access) error {
				what := fmt.Sprintf("replacement of all grants by %d", len(entries))
				if err := recorded(flags, what, func() error { return access.Replace(ctx, entries) }); err != nil {
					return err
				}
				return a.print(fmt.Sprintf("there are %d grants now\n", len(entries)))
			})
		}),
	}
}

func ofOwner(owner export.Owner, err error) error {
	if errors.Is(err, pgdir.ErrNoGrant) {
		return fmt.Errorf("owner %s: %w", owner.Hash(), err)
	}
	return err
}
