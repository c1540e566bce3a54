// House rules of this library that no published lint rule covers.

/** Whether a comment stands on the node's first or last line, or ends on the line above it or above its statement. */
const isExplained = (context, node) => {
  let statement = node
  while (statement.parent && !/Statement$|Declaration$|^(PropertyDefinition|MethodDefinition)$/.test(statement.type)) {
    statement = statement.parent
  }
  const { start, end } = node.loc
  const lines = new Set([start.line - 1, start.line, end.line, statement.loc.start.line - 1])
  // A docstring speaks to users; a reason speaks to the next maintainer.
  return context.sourceCode.getAllComments().some((comment) =>
    !(comment.type === "Block" && comment.value.startsWith("*")) && lines.has(comment.loc.end.line)
  )
}

const explainedCast = {
  create(context) {
    const check = (node) => {
      // A cast by way of unknown is one cast.
      if (node.parent.type !== "TSAsExpression" && !isExplained(context, node)) {
        context.report({ node, message: "Say in a comment on or above this line why the cast is safe." })
      }
    }
    return {
      TSAsExpression(node) {
        const type = node.typeAnnotation
        if (!(type.type === "TSTypeReference" && type.typeName.name === "const")) check(node)
      },
      TSTypeAssertion: check,
      TSNonNullExpression: check
    }
  }
}

const documentedExport = {
  create(context) {
    // What users cannot import is marked @internal; what they can import tells them about itself.
    const internal = /[\\/]internal[\\/]/.test(context.filename)
    const wanted = internal ? [/@internal\b/] : [/@category \S/, /@since \d/]
    const message = internal
      ? "Mark this export with a docstring as @internal."
      : "Give this export a docstring with @category and @since; what is not for users goes to an internal folder."
    return {
      ExportNamedDeclaration(node) {
        if (node.declaration === null || node.declaration === undefined) return
        const comment = context.sourceCode.getCommentsBefore(node).at(-1)
        const text = comment?.type === "Block" && comment.value.startsWith("*") ? comment.value : ""
        if (!wanted.every((pattern) => pattern.test(text))) context.report({ node, message })
      }
    }
  }
}

export default {
  meta: { name: "house" },
  rules: { "explained-cast": explainedCast, "documented-export": documentedExport }
}
