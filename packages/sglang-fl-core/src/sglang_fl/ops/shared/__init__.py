"""What several ops share: parts of references, checks of arguments, sample inputs. No op lies here."""
