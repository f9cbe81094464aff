// A tour of every call that npm's `dify-client` offers, against a server of ours.
//
//   flowledger dev --offline --port 5001 &
//   flowledger import examples/hello.yml                        # a workflow; then: flowledger keys Hello add app-...
//   flowledger import examples/clients/chat.yml                 # a chatflow; the same with another key
//   npm install dify-client
//   node tour.mjs http://127.0.0.1:5001/v1 WORKFLOW_KEY CHAT_KEY
//
// Prints one line a call and ends with 1 when an answer is not what the contract says.
import { ChatClient, CompletionClient, DifyClient } from "dify-client";

const [base, workflowKey, chatKey] = process.argv.slice(2);
let failed = 0;

function check(what, holds, seen) {
  console.log(`${holds ? "ok  " : "FAIL"} ${what}${holds ? "" : `: ${JSON.stringify(seen)}`}`);
  if (!holds) failed = 1;
}

/** The status and code of a call that must be refused. */
async function refused(call) {
  try {
    const answer = await call;
    return { status: answer.status };
  } catch (error) {
    return { status: error.response?.status, code: error.response?.data?.code };
  }
}

/** The frames of a raw stream, pings left out. */
async function frames(stream) {
  let text = "";
  for await (const piece of stream) text += piece;
  return text
    .split("\n")
    .filter((line) => line.startsWith("data: "))
    .map((line) => JSON.parse(line.slice(6)));
}

const workflow = new CompletionClient("app-replaced-below", base);
workflow.updateApiKey(workflowKey);

const parameters = await workflow.getApplicationParameters("tour");
check("parameters", parameters.status === 200 && Array.isArray(parameters.data.user_input_form), parameters.data);

const form = new FormData();
form.append("user", "tour");
form.append("file", new Blob(["hello"], { type: "text/plain" }), "hello.txt");
const uploaded = await workflow.fileUpload(form);
check("file upload", uploaded.status === 201 && uploaded.data.name === "hello.txt", uploaded.data);

const blocking = await workflow.runWorkflow({ name: "Ada" }, "tour");
check("workflow, blocking", blocking.data.data.status === "succeeded", blocking.data);

const seen = await frames((await workflow.runWorkflow({ name: "Ada" }, "tour", true)).data);
check("workflow, streaming", seen.at(-1).event === "workflow_finished", seen.at(-1));

const completion = await refused(workflow.createCompletionMessage({}, "tour"));
check("completion: app_unavailable", completion.status === 400 && completion.code === "app_unavailable", completion);

const unknown = await refused(new DifyClient("app-nobodyhasthiskey", base).getApplicationParameters("tour"));
check("an unknown key: 401", unknown.status === 401 && unknown.code === "unauthorized", unknown);

if (chatKey) {
  const chat = new ChatClient(chatKey, base);
  const first = (await chat.createChatMessage({}, "Hello", "tour")).data;
  check("chat, blocking", typeof first.answer === "string" && first.conversation_id, first);
  const streamed = await chat.createChatMessage({}, "And again", "tour", true, first.conversation_id);
  const told = await frames(streamed.data);
  check("chat, streaming", told.some((frame) => frame.event === "message_end"), told.at(-1));
  const messages = (await chat.getConversationMessages("tour", first.conversation_id, null, 10)).data;
  check("messages", messages.data.length === 2, messages);
  const rated = await chat.messageFeedback(first.message_id, "like", "tour");
  check("feedback", rated.data.result === "success", rated.data);
  const named = await chat.renameConversation(first.conversation_id, "Tour", "tour", false);
  check("rename", named.data.name === "Tour", named.data);
  const listed = (await chat.getConversations("tour", null, 20)).data;
  check("conversations", listed.data.some((each) => each.id === first.conversation_id), listed);
  const gone = await chat.deleteConversation(first.conversation_id, "tour");
  check("delete", gone.status === 200 || gone.status === 204, gone.data);
}

process.exit(failed);
